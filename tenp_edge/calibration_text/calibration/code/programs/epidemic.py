import heapq
import random
from collections import Counter


# Event-driven SIR epidemic on a small-world contact graph. Every infected node
# draws the time of its recovery and of each transmission up front; the heap
# then plays them back in order. Much faster than ticking, and exact.

def ring_with_shortcuts(n, k, p, rng):
    """n nodes, each tied to its k nearest on either side; every tie is rewired
    to a random node with probability p. Returns a list of neighbour sets."""
    nbrs = [set() for _ in range(n)]
    for i in range(n):
        for d in range(1, k + 1):
            j = (i + d) % n
            if rng.random() < p:
                j = rng.randrange(n)
                while j == i or j in nbrs[i]:
                    j = rng.randrange(n)
            nbrs[i].add(j)
            nbrs[j].add(i)
    return nbrs


def outbreak(nbrs, beta, gamma, seeds, rng):
    """Yield (time, susceptible, infected, recovered) after each change.

    beta is the transmission rate along one tie, gamma the recovery rate, both
    per day.
    """
    S, I, R = "SIR"
    state = [S] * len(nbrs)
    count = Counter({S: len(nbrs), I: 0, R: 0})
    events = [(0.0, "infect", s) for s in seeds]
    heapq.heapify(events)
    while events:
        t, kind, node = heapq.heappop(events)
        if kind == "infect":
            if state[node] != S:
                continue                    # somebody else was quicker
            state[node] = I
            count[S] -= 1
            count[I] += 1
            healed = t + rng.expovariate(gamma)
            heapq.heappush(events, (healed, "recover", node))
            for other in nbrs[node]:
                hit = t + rng.expovariate(beta)
                if hit < healed and state[other] == S:
                    heapq.heappush(events, (hit, "infect", other))
        else:
            state[node] = R
            count[I] -= 1
            count[R] += 1
        yield t, count[S], count[I], count[R]


def summary(p, runs=20, n=2000):
    peaks, sizes = [], []
    for seed in range(runs):
        rng = random.Random(seed)
        g = ring_with_shortcuts(n, 4, p, rng)
        history = list(outbreak(g, beta=0.10, gamma=0.2, seeds=range(3), rng=rng))
        peaks.append(max(i for _, _, i, _ in history))
        sizes.append(history[-1][3])
        assert all(s + i + r == n for _, s, i, r in history)
        assert history[-1][2] == 0, "an epidemic always ends"
    return sum(peaks) / runs, sum(sizes) / runs


if __name__ == "__main__":
    print("shortcuts   mean peak   mean final size")
    for p in (0.0, 0.02, 0.2):
        peak, size = summary(p)
        print(f"{p:9.2f}   {peak:9.0f}   {size:15.0f}")
