def pack(crates, limit):
    """Most valuable choice of crates that the van can carry.

    ``crates`` is a list of (label, kilos, value) with whole kilos; each can be
    taken once. Returns (value, labels in input order).

    >>> pack([("pears", 12, 30), ("honey", 20, 80), ("cider", 18, 60)], 32)
    (110, ['pears', 'honey'])
    >>> pack([], 10)
    (0, [])
    >>> pack([("anvil", 90, 1000)], 40)
    (0, [])
    """
    best = [0] * (limit + 1)
    taken = []                       # one bitmap of "took it" per crate
    for _, kilos, value in crates:
        took = bytearray(limit + 1)
        # downwards, so that best[room - kilos] is still without this crate
        for room in range(limit, kilos - 1, -1):
            candidate = best[room - kilos] + value
            if candidate > best[room]:
                best[room] = candidate
                took[room] = 1
        taken.append(took)

    labels, room = [], limit
    for (label, kilos, _), took in zip(reversed(crates), reversed(taken)):
        if took[room]:
            labels.append(label)
            room -= kilos
    return best[limit], labels[::-1]
