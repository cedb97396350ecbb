//! Conway's Life on a 64 x N torus, a row per `u64`, all 64 cells at once.

/// Adds three one-bit numbers in each of the 64 lanes: (sum, carry).
fn full_add(a: u64, b: u64, c: u64) -> (u64, u64) {
    let ab = a ^ b;
    (ab ^ c, (a & b) | (ab & c))
}

fn step(rows: &[u64]) -> Vec<u64> {
    let n = rows.len();
    // Horizontal sums of three cells, as two bit planes per row.
    let tri: Vec<(u64, u64)> = rows
        .iter()
        .map(|&r| full_add(r.rotate_left(1), r, r.rotate_right(1)))
        .collect();
    (0..n)
        .map(|y| {
            let (a0, a1) = tri[(y + n - 1) % n];
            let (b0, b1) = tri[y];
            let (c0, c1) = tri[(y + 1) % n];
            // Nine-cell total, centre included: ones + 2 * (four weight-2 bits).
            let (ones, carry) = full_add(a0, b0, c0);
            let (t, k1) = full_add(a1, b1, c1);
            let twos = t ^ carry;
            let k2 = t & carry;
            let fours = k1 ^ k2;
            let eights = k1 & k2;
            // Alive next: total is 3, or total is 4 and the cell is alive now.
            let three = ones & twos & !fours & !eights;
            let four = !ones & !twos & fours & !eights;
            three | (four & rows[y])
        })
        .collect()
}

fn population(rows: &[u64]) -> u32 {
    rows.iter().map(|r| r.count_ones()).sum()
}

fn main() {
    // A glider, heading for the lower right corner and round the torus.
    let mut world = vec![0u64; 64];
    world[1] = 0b010 << 60;
    world[2] = 0b001 << 60;
    world[3] = 0b111 << 60;
    let start = world.clone();
    for _ in 0..4 * 64 {
        world = step(&world);
        assert_eq!(population(&world), 5);
    }
    assert_eq!(world, start, "after 256 generations it is home again");
    println!("glider went once around");
}
