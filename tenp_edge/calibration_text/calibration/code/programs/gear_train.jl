# Find change gears for thread cutting on a small lathe.
#
# The carriage moves `lead` mm per turn of the lead screw, so cutting a thread of
# pitch p needs the ratio p / lead = (A * C) / (B * D), with A driving B and C
# driving D. The box holds one of each wheel.

const WHEELS = [20, 24, 28, 30, 32, 35, 36, 40, 45, 50, 60, 63, 65, 70, 80, 127]

struct Train
    A::Int
    B::Int
    C::Int
    D::Int
end

ratio(t::Train) = (t.A * t.C) // (t.B * t.D)

"""
    best_trains(pitch, lead; keep = 3)

The `keep` trains with the smallest pitch error, as `(train, error in mm)`.
Exact rational arithmetic decides which hits are perfect.
"""
function best_trains(pitch::Rational, lead::Rational; keep = 3)
    target = pitch // lead
    found = Tuple{Train, Rational{Int}}[]
    for A in WHEELS, C in WHEELS
        A < C || continue              # A and C can be swapped freely
        for B in WHEELS, D in WHEELS
            B < D || continue
            allunique((A, B, C, D)) || continue
            t = Train(A, B, C, D)
            push!(found, (t, abs(ratio(t) - target) * lead))
        end
    end
    sort!(found; by = last)
    return first(found, keep)
end

# Imperial threads are exact with the 127 wheel, since 25.4 = 127 / 5.
tpi(n) = 127 // (5n)

function report(name, pitch; lead = 3 // 1)
    println(name)
    for (t, err) in best_trains(pitch, lead)
        mark = iszero(err) ? "exact" : string(round(float(err) * 1000; digits = 2), " µm off")
        println("  ", lpad(t.A, 3), "/", rpad(t.B, 3), " × ", lpad(t.C, 3), "/", rpad(t.D, 3), "  ", mark)
    end
end

report("M8 × 1.25", 5 // 4)
report("20 tpi", tpi(20))
report("module 1 worm (π mm)", rationalize(Int, Float64(π); tol = 1e-9))
