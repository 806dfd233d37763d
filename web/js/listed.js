// Lines that match a filter, or of several workers merged: a stretch of rows that is extended at either end as it is looked
// at, and cut at the far end, so that a bounded number is kept. It consists of pieces, each of which knows its places
// ("positions" of the server, opaque) in the log.

import { getJson, withQuery } from "./api.js";

const PAGE = 500;
const KEEP = 10_000;
const KEEP_BYTES = 24_000_000;

export class ListedSource {
  #path;
  #params;
  #pieces = [];
  #starts = [];
  #length = 0;
  #bytes = 0;
  #hasBefore = false;
  #hasAfter = false;
  #loading = null;
  #stuck = null;
  #searched = 0;
  #changed;
  #shifted;
  #state;
  #closed = new AbortController();

  /**
   * `path`, `params`: the logs endpoint. `changed()`, `shifted(n)`: as Scroller.update and Scroller.shifted.
   * `state({ loading, searched, error })`: what it does; `searched`: lines looked at by this request and those before it.
   */
  constructor({ path, params, changed, shifted, state }) {
    this.#path = path;
    this.#params = params;
    this.#changed = changed;
    this.#shifted = shifted;
    this.#state = state;
  }

  close() {
    this.#closed.abort();
    clearTimeout(this.#stuck);
  }

  get length() {
    return this.#length;
  }

  get(index) {
    let at = this.#starts.length - 1;
    while (this.#starts[at] > index) at -= 1;
    return this.#pieces[at].rows[index - this.#starts[at]];
  }

  /** Whether the newest row is among these, so that new ones are appended. */
  get atEnd() {
    return !this.#hasAfter;
  }

  get atStart() {
    return !this.#hasBefore;
  }

  /** The place after the newest row, where a stream goes on; null if there is none yet. */
  get position() {
    return this.#pieces.length === 0 ? null : this.#pieces[this.#pieces.length - 1].after;
  }

  /** Starts over at the end of the log; resolves when they are there. */
  async loadEnd() {
    const mark = this.#restart();
    const piece = await this.#search({ tail: PAGE }, "before", mark);
    if (!piece) return;
    this.#hasBefore = piece.more;
    this.#hasAfter = false;
    this.#add(piece, true);
    this.#loading = null;
    this.#changed();
  }

  /** Starts over at the beginning of the log. */
  async loadStart() {
    const mark = this.#restart();
    const piece = await this.#search({ limit: PAGE }, "after", mark);
    if (!piece) return;
    this.#hasBefore = false;
    this.#hasAfter = piece.more;
    this.#add(piece, true);
    this.#loading = null;
    this.#changed();
  }

  ensure(from, to) {
    if (this.#loading || this.#stuck) return;
    if (from < 100 && this.#hasBefore) this.#extend("before");
    else if (to > this.#length - 100 && this.#hasAfter) this.#extend("after");
  }

  addLines(lines, position) {
    this.#append(lines.map(lineRow), position);
  }

  addGap(gap, position) {
    this.#append([gapRow(gap)], position);
  }

  addEvent(event, position) {
    this.#append([{ key: `e${event.event_id}`, kind: "event", event }], position);
  }

  // Rows from the stream. Left out while the rows here end earlier: they are fetched when looked at.
  #append(rows, position) {
    if (this.#hasAfter || this.#pieces.length === 0) return;
    let piece = this.#pieces[this.#pieces.length - 1];
    if (piece.rows.length + rows.length > PAGE && piece.rows.length > 0) {
      piece = { rows: [], bytes: 0, before: piece.after, after: position };
      this.#pieces.push(piece);
    }
    for (const row of rows) {
      piece.rows.push(row);
      piece.bytes += weight(row);
      this.#bytes += weight(row);
    }
    piece.after = position;
    const cut = this.#cut("head");
    this.#count();
    if (cut > 0) this.#shifted(-cut);
    else this.#changed();
  }

  #restart() {
    this.#pieces = [];
    this.#bytes = 0;
    this.#searched = 0;
    this.#count();
    this.#loading = {};
    return this.#loading;
  }

  #count() {
    let row = 0;
    this.#starts = this.#pieces.map((piece) => {
      const start = row;
      row += piece.rows.length;
      return start;
    });
    this.#length = row;
  }

  #add(piece, atTail) {
    if (atTail) this.#pieces.push(piece);
    else this.#pieces.unshift(piece);
    this.#bytes += piece.bytes;
    this.#count();
  }

  // Lets go of pieces at one end; returns how many rows went.
  #cut(end) {
    let gone = 0;
    let rows = this.#pieces.reduce((sum, piece) => sum + piece.rows.length, 0);
    while (this.#pieces.length > 2 && (rows > KEEP || this.#bytes > KEEP_BYTES)) {
      const piece = end === "head" ? this.#pieces.shift() : this.#pieces.pop();
      rows -= piece.rows.length;
      gone += piece.rows.length;
      this.#bytes -= piece.bytes;
      if (end === "head") this.#hasBefore = true;
      else this.#hasAfter = true;
    }
    return gone;
  }

  async #extend(side) {
    const mark = (this.#loading = {});
    if (side === "before") {
      const piece = await this.#search({ tail: PAGE, before: this.#pieces[0].before }, "before", mark);
      if (!piece) return;
      this.#hasBefore = piece.more;
      this.#add(piece, false);
      this.#cut("tail");
      this.#count();
      this.#loading = null;
      this.#shifted(piece.rows.length);
    } else {
      const piece = await this.#search({ limit: PAGE, after: this.#pieces[this.#pieces.length - 1].after }, "after", mark);
      if (!piece) return;
      this.#hasAfter = piece.more;
      this.#add(piece, true);
      const cut = this.#cut("head");
      this.#count();
      this.#loading = null;
      if (cut > 0) this.#shifted(-cut);
      else this.#changed();
    }
  }

  // One piece, from as many requests as it takes: the server bounds the work of each, not what it finds.
  async #search(where, side, mark) {
    const rows = [];
    let piece = null;
    for (;;) {
      this.#state({ loading: true, searched: this.#searched, error: null });
      let answer;
      try {
        answer = await getJson(withQuery(this.#path, { ...this.#params, ...where }), { signal: this.#closed.signal });
      } catch (error) {
        if (this.#closed.signal.aborted || mark !== this.#loading) return null;
        this.#state({ loading: false, searched: this.#searched, error });
        this.#loading = null;
        this.#stuck = setTimeout(() => {
          this.#stuck = null;
          this.#changed();
        }, 2000);
        return null;
      }
      if (mark !== this.#loading) return null;
      this.#searched += answer.searched_lines;
      const found = merge(answer.lines, answer.gaps);
      if (side === "before") rows.unshift(...found);
      else rows.push(...found);
      piece = {
        rows,
        bytes: 0,
        before: side === "before" || piece === null ? answer.before : piece.before,
        after: side === "after" || piece === null ? answer.after : piece.after,
        more: side === "before" ? answer.has_before : answer.has_after,
      };
      if (!piece.more || rows.length >= 100) break;
      where = side === "before" ? { tail: PAGE, before: piece.before } : { limit: PAGE, after: piece.after };
    }
    piece.bytes = rows.reduce((sum, row) => sum + weight(row), 0);
    this.#state({ loading: false, searched: this.#searched, error: null });
    return piece;
  }
}

const lineRow = (line) => ({ ...line, key: `${line.run_id}:${line.sequence}`, kind: "line" });
const gapRow = (gap) => ({ key: `g${gap.run_id}:${gap.first_sequence}`, kind: "gap", gap });
const weight = (row) => (row.message?.length ?? 0) + 200;

// Gaps where they lie between the lines of their run.
function merge(lines, gaps) {
  const rows = lines.map(lineRow);
  for (const gap of gaps) {
    let at = rows.findIndex((row) => row.run_id === gap.run_id && row.sequence > gap.first_sequence);
    if (at === -1) at = rows.length;
    rows.splice(at, 0, gapRow(gap));
  }
  return rows;
}
