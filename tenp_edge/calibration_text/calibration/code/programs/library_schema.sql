-- Lending library for tools: drills, ladders, a tile cutter, one very popular
-- carpet cleaner. SQLite dialect; run with  sqlite3 tools.db < library_schema.sql

PRAGMA foreign_keys = ON;

CREATE TABLE member (
    member_id  INTEGER PRIMARY KEY,
    name       TEXT NOT NULL,
    email      TEXT NOT NULL UNIQUE COLLATE NOCASE,
    joined_on  TEXT NOT NULL CHECK (joined_on IS date(joined_on))
);

CREATE TABLE tool (
    tool_id     INTEGER PRIMARY KEY,
    label       TEXT NOT NULL,
    category    TEXT NOT NULL CHECK (category IN ('power', 'hand', 'garden', 'cleaning')),
    deposit_ct  INTEGER NOT NULL DEFAULT 0 CHECK (deposit_ct >= 0),
    retired_on  TEXT
);

CREATE TABLE loan (
    loan_id      INTEGER PRIMARY KEY,
    tool_id      INTEGER NOT NULL REFERENCES tool,
    member_id    INTEGER NOT NULL REFERENCES member,
    out_on       TEXT NOT NULL,
    due_on       TEXT NOT NULL,
    returned_on  TEXT,
    CHECK (due_on >= out_on),
    CHECK (returned_on IS NULL OR returned_on >= out_on)
);

-- The rule "a tool is lent to one person at a time", without a trigger:
CREATE UNIQUE INDEX loan_open ON loan (tool_id) WHERE returned_on IS NULL;
CREATE INDEX loan_by_member ON loan (member_id, out_on);

CREATE TRIGGER no_loan_of_retired_tool
BEFORE INSERT ON loan
WHEN (SELECT retired_on FROM tool WHERE tool_id = NEW.tool_id) IS NOT NULL
BEGIN
    SELECT RAISE(ABORT, 'this tool has been retired');
END;

INSERT INTO member VALUES
    (1, 'Ottilie Brandt',  'ottilie@example.org', '2022-02-11'),
    (2, 'Samir Haddad',    'samir@example.org',   '2022-06-30'),
    (3, 'June Okafor',     'june@example.org',    '2023-01-15');

INSERT INTO tool (tool_id, label, category, deposit_ct) VALUES
    (10, 'Hammer drill 800 W',  'power',    3000),
    (11, 'Extension ladder 6 m', 'hand',    2000),
    (12, 'Carpet cleaner',      'cleaning', 5000),
    (13, 'Hedge trimmer',       'garden',   2500),
    (14, 'Tile cutter',         'hand',     1500);

INSERT INTO loan (tool_id, member_id, out_on, due_on, returned_on) VALUES
    (12, 1, '2023-03-01', '2023-03-04', '2023-03-04'),
    (12, 2, '2023-03-05', '2023-03-08', '2023-03-12'),
    (10, 2, '2023-03-05', '2023-03-12', '2023-03-11'),
    (12, 3, '2023-03-14', '2023-03-17', NULL),
    (13, 1, '2023-03-20', '2023-03-27', NULL),
    (11, 3, '2023-02-01', '2023-02-08', '2023-02-10');

-- Who has to be reminded on 22 March, and how late are they?
SELECT m.name, t.label,
       CAST(julianday('2023-03-22') - julianday(l.due_on) AS INTEGER) AS days_late
FROM loan AS l
JOIN member AS m USING (member_id)
JOIN tool AS t USING (tool_id)
WHERE l.returned_on IS NULL AND l.due_on < '2023-03-22'
ORDER BY days_late DESC;

-- Idle time between two loans of the same tool.
SELECT label, out_on,
       julianday(out_on) - julianday(lag(returned_on) OVER w) AS idle_days
FROM loan JOIN tool USING (tool_id)
WINDOW w AS (PARTITION BY tool_id ORDER BY out_on)
ORDER BY label, out_on;

-- Tools nobody has ever borrowed: candidates for the flea market.
SELECT label FROM tool AS t
WHERE NOT EXISTS (SELECT 1 FROM loan WHERE tool_id = t.tool_id);

-- Share of late returns per member, open overdue loans included.
SELECT m.name,
       count(l.loan_id) AS loans,
       round(100.0 * avg(coalesce(l.returned_on, '2023-03-22') > l.due_on), 1) AS late_pct
FROM member AS m LEFT JOIN loan AS l USING (member_id)
GROUP BY m.member_id
ORDER BY late_pct DESC;
