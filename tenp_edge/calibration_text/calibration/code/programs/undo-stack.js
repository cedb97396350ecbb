'use strict';

/**
 * Undo/redo for the pattern editor.
 *
 * Commands are plain objects `{ do, undo, label, merge? }`. While a drag is in
 * progress the editor pushes dozens of tiny moves; `merge(previous)` lets them
 * melt into one entry so that Ctrl+Z jumps back to where the drag began.
 */
class UndoStack {
  #done = [];
  #undone = [];
  #saved = 0;       // length of #done at the last save, or -1 if unreachable

  constructor({ limit = 200, onChange = () => {} } = {}) {
    this.limit = limit;
    this.onChange = onChange;
  }

  push(cmd) {
    cmd.do();
    const last = this.#done.at(-1);
    const merged = last && this.#undone.length === 0 && this.#saved !== this.#done.length
      ? cmd.merge?.(last)
      : undefined;
    if (merged) {
      this.#done[this.#done.length - 1] = merged;
    } else {
      // The saved state lived in the redo branch that is about to vanish.
      if (this.#saved > this.#done.length) this.#saved = -1;
      this.#done.push(cmd);
      if (this.#done.length > this.limit) {
        this.#done.shift();
        this.#saved = this.#saved > 0 ? this.#saved - 1 : -1;
      }
    }
    this.#undone = [];
    this.onChange(this);
  }

  undo() {
    const cmd = this.#done.pop();
    if (!cmd) return false;
    cmd.undo();
    this.#undone.push(cmd);
    this.onChange(this);
    return true;
  }

  redo() {
    const cmd = this.#undone.pop();
    if (!cmd) return false;
    cmd.do();
    this.#done.push(cmd);
    this.onChange(this);
    return true;
  }

  markSaved() { this.#saved = this.#done.length; }
  get dirty() { return this.#saved !== this.#done.length; }
  get labels() { return this.#done.map((c) => c.label); }
}

const move = (shape, from, to) => ({
  label: `move ${shape.name}`,
  do() { shape.x = to; },
  undo() { shape.x = from; },
  merge(prev) {
    return prev.shape === shape ? move(shape, prev.from, to) : undefined;
  },
  shape,
  from,
});

module.exports = { UndoStack, move };

if (require.main === module) {
  const assert = require('node:assert/strict');
  const sleeve = { name: 'sleeve', x: 0 };
  const collar = { name: 'collar', x: 50 };
  const s = new UndoStack();

  for (let x = 0; x < 10; x++) s.push(move(sleeve, sleeve.x, x + 1));
  s.push(move(collar, 50, 60));
  assert.deepEqual(s.labels, ['move sleeve', 'move collar']);

  s.undo();
  s.undo();
  assert.equal(sleeve.x, 0, 'the whole drag is one step');
  assert.equal(s.dirty, false);
  s.redo();
  assert.equal(sleeve.x, 10);
  s.markSaved();
  s.push(move(sleeve, 10, 12));       // must not merge into the saved step
  assert.equal(s.labels.length, 2);
  s.undo();
  assert.ok(!s.dirty);
  s.undo();
  s.push(move(collar, 50, 51));
  assert.ok(s.dirty, 'the saved state can no longer be reached');
  console.log('undo-stack ok');
}
