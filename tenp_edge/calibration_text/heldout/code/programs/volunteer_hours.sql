-- Postgres: fill the gaps in the volunteer statistics. A month without any shift
-- must show up as 0 hours, not vanish from the chart.
WITH month AS (
    SELECT generate_series(date '2023-01-01', date '2023-12-01', interval '1 month')::date AS first
),
worked AS (
    SELECT date_trunc('month', started_at)::date AS first,
           team_id,
           sum(extract(epoch FROM ended_at - started_at)) / 3600 AS hours
    FROM shift
    WHERE ended_at IS NOT NULL          -- forgotten check-outs are handled by hand
    GROUP BY 1, 2
)
SELECT t.name,
       to_char(m.first, 'YYYY-MM') AS month,
       round(coalesce(w.hours, 0)::numeric, 1) AS hours,
       round(sum(coalesce(w.hours, 0)) OVER (PARTITION BY t.team_id ORDER BY m.first)::numeric, 1) AS year_to_date
FROM team AS t
CROSS JOIN month AS m
LEFT JOIN worked AS w USING (team_id, first)
ORDER BY t.name, m.first;
