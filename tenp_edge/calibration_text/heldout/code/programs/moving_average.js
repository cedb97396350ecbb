// Running median over a sliding window, for the noisy ultrasonic level sensor.
// The window is short (<= 101), so a sorted array with binary search beats any
// clever tree: the memmove inside splice is faster than chasing pointers.

export class SlidingMedian {
  constructor(size) {
    if (!Number.isInteger(size) || size < 1 || size % 2 === 0) {
      throw new RangeError(`window must be odd and positive, got ${size}`);
    }
    this.size = size;
    this.ring = [];
    this.next = 0;
    this.sorted = [];
  }

  #position(x) {
    let lo = 0;
    let hi = this.sorted.length;
    while (lo < hi) {
      const mid = (lo + hi) >>> 1;
      if (this.sorted[mid] < x) lo = mid + 1;
      else hi = mid;
    }
    return lo;
  }

  /** Adds a reading and returns the median of the last `size` of them. */
  push(x) {
    if (!Number.isFinite(x)) return this.value;   // sensor says "no echo"
    if (this.ring.length === this.size) {
      const old = this.ring[this.next];
      this.sorted.splice(this.#position(old), 1);
    }
    this.ring[this.next] = x;
    this.next = (this.next + 1) % this.size;
    this.sorted.splice(this.#position(x), 0, x);
    return this.value;
  }

  get value() {
    const n = this.sorted.length;
    if (n === 0) return undefined;
    const h = n >> 1;
    return n % 2 ? this.sorted[h] : (this.sorted[h - 1] + this.sorted[h]) / 2;
  }
}

// A single spike must not show: 30, 31, 500, 30, 32 -> 31
const m = new SlidingMedian(5);
const out = [30, 31, 500, 30, 32, NaN, 33].map((x) => m.push(x));
console.assert(JSON.stringify(out) === '[30,30.5,31,30.5,31,31,32]', out);
