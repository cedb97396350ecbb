use std::collections::BTreeMap;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;

/// Runs `f` over `jobs` on `threads` threads and hands the results to `sink` in
/// the order of the jobs, each as soon as everything before it is there.
///
/// A panic in `f` is passed on to the caller once the threads have stopped.
pub fn ordered_map<J, R, F, S>(jobs: Vec<J>, threads: usize, f: F, mut sink: S)
where
    J: Send,
    R: Send,
    F: Fn(J) -> R + Sync,
    S: FnMut(usize, R),
{
    assert!(threads > 0, "at least one thread");
    let queue = Arc::new(Mutex::new(jobs.into_iter().enumerate()));
    let (tx, rx) = mpsc::channel();

    thread::scope(|scope| {
        for _ in 0..threads {
            let (queue, tx, f) = (Arc::clone(&queue), tx.clone(), &f);
            scope.spawn(move || loop {
                // Bound to a variable so that the lock is released before f runs.
                let next = queue.lock().unwrap().next();
                let Some((index, job)) = next else { break };
                if tx.send((index, f(job))).is_err() {
                    break; // the sink panicked, nobody is listening
                }
            });
        }
        drop(tx); // or the loop below would wait for ever

        let mut early = BTreeMap::new();
        let mut wanted = 0;
        for (index, result) in rx {
            early.insert(index, result);
            while let Some(r) = early.remove(&wanted) {
                sink(wanted, r);
                wanted += 1;
            }
        }
    });
}

/// Length of the Collatz sequence of n, as something to chew on.
fn collatz(mut n: u64) -> u32 {
    let mut steps = 0;
    while n != 1 {
        n = if n % 2 == 0 { n / 2 } else { 3 * n + 1 };
        steps += 1;
    }
    steps
}

fn main() {
    let numbers: Vec<u64> = vec![27, 1, 97, 6, 871, 2];
    let mut seen = Vec::new();
    ordered_map(numbers, 3, collatz, |i, steps| seen.push((i, steps)));
    assert_eq!(seen, [(0, 111), (1, 0), (2, 118), (3, 8), (4, 178), (5, 1)]);
    println!("{seen:?}");
}
