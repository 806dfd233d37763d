// The whole log of one run as rows: every line by its sequence, every gap one row. Lines are fetched in pages as they are
// looked at; a bounded number of pages is kept.

import { apiPath, getJson, withQuery } from "./api.js";

const PAGE = 500;
const KEEP_PAGES = 40;
const KEEP_BYTES = 24_000_000;
const AT_ONCE = 2;
const PAUSE_MS = 2000;

export class IndexedSource {
  #path;
  #run;
  #first = 1;
  #last = 0;
  #gaps = [];
  #segments = [];
  #length = 0;
  #pages = new Map();
  #bytes = 0;
  #blanks = new Map();
  #busy = new Map();
  #want = [];
  #changed;
  #failed;
  #closed = new AbortController();
  #note = null;
  #retry = 0;

  /** `changed()`: rows are there that were not, or the length is another. `failed(error)`: a page could not be fetched. */
  constructor({ task, worker, run, changed, failed }) {
    this.#path = apiPath("tasks", task, "workers", worker, "logs");
    this.#run = run;
    this.#changed = changed;
    this.#failed = failed;
  }

  close() {
    clearTimeout(this.#retry);
    this.#closed.abort();
  }

  get length() {
    return this.#length;
  }

  get last() {
    return this.#last;
  }

  /** The run as the server describes it; the only way this learns of gaps and the end. */
  setRun(run) {
    const last = Math.max(this.#last, run.last_sequence);
    const gaps = run.gaps.map((gap) => ({ ...gap, end: gap.last_sequence || Math.max(gap.first_sequence, last) }));
    const same = last === this.#last && JSON.stringify(gaps) === JSON.stringify(this.#gaps);
    const text = run.note ?? null;
    if (same && text === (this.#note?.text ?? null)) return;
    this.#last = last;
    this.#gaps = gaps;
    this.#note = text === null ? null : { key: "note", kind: "note", text };
    this.#layout();
    this.#changed();
  }

  addGap(gap) {
    if (this.#gaps.some((known) => known.first_sequence === gap.first_sequence)) return;
    this.#gaps.push({ ...gap, end: gap.last_sequence || gap.first_sequence });
    this.#gaps.sort((a, b) => a.first_sequence - b.first_sequence);
    this.#last = Math.max(this.#last, gap.last_sequence || 0);
    this.#layout();
    this.#changed();
  }

  /** Lines from the stream, in order. */
  addLines(lines) {
    if (lines.length === 0) return;
    for (const line of lines) {
      const number = Math.floor((line.sequence - 1) / PAGE);
      let page = this.#pages.get(number);
      if (!page && (line.sequence - 1) % PAGE === 0) page = this.#newPage(number);
      if (page) this.#put(page, line);
    }
    this.#trim();
    const last = lines[lines.length - 1].sequence;
    if (last > this.#last) {
      this.#last = last;
      this.#layout();
    }
    this.#changed();
  }

  // Alternating stretches of lines and gaps, with the row each begins at.
  #layout() {
    this.#segments = [];
    let row = 0;
    let next = this.#first;
    const lines = (to) => {
      if (to >= next) {
        this.#segments.push({ row, first: next, count: to - next + 1 });
        row += to - next + 1;
      }
    };
    for (const gap of this.#gaps) {
      if (gap.end < next) continue;
      lines(gap.first_sequence - 1);
      this.#segments.push({ row, count: 1, gap, first: gap.first_sequence, item: { key: `g${gap.first_sequence}`, kind: "gap", gap } });
      row += 1;
      next = gap.end + 1;
    }
    lines(this.#last);
    this.#length = row + (this.#note ? 1 : 0);
  }

  #segmentAt(index) {
    let low = 0;
    let high = this.#segments.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.#segments[middle].row <= index) low = middle;
      else high = middle - 1;
    }
    return this.#segments[low];
  }

  get(index) {
    if (this.#note && index === this.#length - 1) return this.#note;
    const segment = this.#segmentAt(index);
    if (segment.gap) return segment.item;
    const sequence = segment.first + (index - segment.row);
    return this.#pages.get(Math.floor((sequence - 1) / PAGE))?.rows.get(sequence) ?? this.#blank(sequence);
  }

  #blank(sequence) {
    let row = this.#blanks.get(sequence);
    if (!row) {
      if (this.#blanks.size > 2000) this.#blanks.clear();
      row = { key: sequence, kind: "blank", sequence };
      this.#blanks.set(sequence, row);
    }
    return row;
  }

  /** Row of a sequence; of the gap it is in; -1 if it is not there. */
  rowOf(sequence) {
    for (const segment of this.#segments) {
      if (segment.gap ? sequence >= segment.first && sequence <= segment.gap.end : sequence >= segment.first && sequence < segment.first + segment.count) {
        return segment.gap ? segment.row : segment.row + (sequence - segment.first);
      }
    }
    return -1;
  }

  /** Sequence shown at a row, or of the next row that has one. */
  sequenceAt(index) {
    if (this.#segments.length === 0) return 0;
    const segment = this.#segmentAt(Math.max(0, Math.min(index, this.#length - 1)));
    return segment.gap ? segment.first : Math.min(segment.first + (index - segment.row), segment.first + segment.count - 1);
  }

  ensure(from, to) {
    const wanted = [];
    for (let index = from; index < to; ) {
      if (this.#note && index >= this.#length - 1) break;
      const segment = this.#segmentAt(index);
      if (!segment) break;
      if (segment.gap) {
        index += 1;
        continue;
      }
      const sequence = segment.first + (index - segment.row);
      const number = Math.floor((sequence - 1) / PAGE);
      if (!wanted.includes(number)) wanted.push(number);
      index = Math.max(index + 1, segment.row + ((number + 1) * PAGE + 1 - segment.first));
    }
    for (const number of wanted) this.#touch(number);
    this.#want = wanted.filter((number) => !this.#full(number));
    this.#work();
  }

  #newPage(number) {
    const page = { number, rows: new Map(), bytes: 0, notBefore: 0 };
    this.#pages.set(number, page);
    return page;
  }

  #touch(number) {
    const page = this.#pages.get(number);
    if (page) {
      this.#pages.delete(number);
      this.#pages.set(number, page);
    }
  }

  #trim() {
    for (const [number, page] of this.#pages) {
      if (this.#pages.size <= KEEP_PAGES && (this.#bytes <= KEEP_BYTES || this.#pages.size <= 2)) break;
      this.#pages.delete(number);
      this.#bytes -= page.bytes;
    }
  }

  #put(page, line) {
    if (page.rows.has(line.sequence)) return;
    page.rows.set(line.sequence, { key: line.sequence, kind: "line", ...line });
    const size = line.message.length + 200;
    page.bytes += size;
    this.#bytes += size;
  }

  // Whether every line of a page that exists is there. Gaps are known from the run.
  #full(number) {
    const page = this.#pages.get(number);
    if (!page) return false;
    return page.notBefore > performance.now() || this.#missing(page) === 0;
  }

  // First sequence of a page that is not there; 0: none.
  #missing(page) {
    const end = Math.min((page.number + 1) * PAGE, this.#last);
    let gap = 0;
    for (let sequence = page.number * PAGE + 1; sequence <= end; sequence += 1) {
      if (page.rows.has(sequence)) continue;
      while (gap < this.#gaps.length && this.#gaps[gap].end < sequence) gap += 1;
      if (gap < this.#gaps.length && this.#gaps[gap].first_sequence <= sequence) {
        sequence = this.#gaps[gap].end;
        continue;
      }
      return sequence;
    }
    return 0;
  }

  #work() {
    if (this.#closed.signal.aborted || this.#retry !== 0) return;
    for (const [number, control] of this.#busy) if (!this.#want.includes(number)) control.abort();
    for (const number of this.#want) {
      if (this.#busy.size >= AT_ONCE) return;
      if (!this.#busy.has(number)) this.#fetch(number);
    }
  }

  async #fetch(number) {
    const control = new AbortController();
    this.#busy.set(number, control);
    try {
      let page = this.#pages.get(number) ?? this.#newPage(number);
      const signal = AbortSignal.any([control.signal, this.#closed.signal]);
      for (let from = this.#missing(page); from !== 0; ) {
        const to = (number + 1) * PAGE;
        const answer = await getJson(withQuery(this.#path, { run: this.#run, from, to, limit: PAGE }), { signal });
        page = this.#pages.get(number) ?? this.#newPage(number);
        for (const line of answer.lines) this.#put(page, line);
        this.#trim();
        for (const gap of answer.gaps) this.addGap(gap);
        this.#changed();
        const next = this.#missing(page);
        // No progress: what is missing is neither stored nor explained (yet).
        if (next === from) {
          page.notBefore = performance.now() + PAUSE_MS;
          break;
        }
        from = next;
      }
      this.#failed(null);
    } catch (error) {
      if (!control.signal.aborted && !this.#closed.signal.aborted) {
        this.#failed(error);
        this.#retry = setTimeout(() => {
          this.#retry = 0;
          this.#work();
        }, PAUSE_MS);
      }
    } finally {
      this.#busy.delete(number);
      this.#want = this.#want.filter((wanted) => wanted !== number);
      this.#work();
    }
  }
}
