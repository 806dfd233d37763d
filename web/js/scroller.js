// Shows a window of a list of any length with a bounded number of DOM nodes.
//
// What is shown is anchored: row number `#top`, of which `#off` pixels are scrolled out. The native scroll bar is a means of
// input: its small movements move the anchor by pixels, its large ones jump. So rows of unknown height (wrapped lines) and
// lists taller than a browser can lay out (several million rows) need no exact geometry.
//
// A source has: length, get(index) → row { key, … }, ensure(from, to) (load what is missing), indexOf(key) (or -1).

const MAX_HEIGHT = 6_000_000;
const OVERSCAN = 8;
const QUIET_MS = 120;

export class Scroller {
  #host;
  #canvas;
  #pane;
  #rows;
  #source = { length: 0, get: () => null, ensure() {}, indexOf: () => -1 };
  #render;
  #onView;
  #onFollow;
  #top = 0;
  #off = 0;
  #y = 0;
  #height = 0;
  #rowHeight = 20;
  #average = 20;
  #wrap = false;
  #follow = false;
  #elements = new Map();
  #frame = 0;
  #settle = 0;
  #moved = -Infinity;
  #observer;
  #probe;
  #widest = 0;

  constructor(host, { render, onView, onFollow }) {
    this.#host = host;
    this.#render = render;
    this.#onView = onView ?? (() => {});
    this.#onFollow = onFollow ?? (() => {});
    this.#canvas = document.createElement("div");
    this.#canvas.className = "canvas";
    this.#pane = document.createElement("div");
    this.#pane.className = "pane";
    this.#rows = document.createElement("div");
    this.#rows.className = "rows";
    this.#probe = document.createElement("div");
    this.#probe.className = "row probe";
    this.#probe.textContent = "0";
    this.#pane.append(this.#rows, this.#probe);
    this.#canvas.append(this.#pane);
    host.append(this.#canvas);
    host.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    host.addEventListener("wheel", (event) => this.#wheel(event), { passive: true });
    this.#observer = new ResizeObserver(() => this.#resized());
    this.#observer.observe(host);
    this.#observer.observe(this.#probe);
  }

  destroy() {
    this.#observer.disconnect();
    cancelAnimationFrame(this.#frame);
    clearTimeout(this.#settle);
    this.#canvas.remove();
  }

  get follow() {
    return this.#follow;
  }

  /** Row number at the top of the view. */
  get top() {
    return this.#top;
  }

  /** Rows that fit. */
  get page() {
    return Math.max(1, Math.floor(this.#host.clientHeight / this.#average));
  }

  setSource(source) {
    this.#source = source;
    this.#top = 0;
    this.#off = 0;
    this.#widest = 0;
    this.#canvas.style.minWidth = "";
    this.#drop();
    this.#host.scrollLeft = 0;
    this.#changedLength();
  }

  setWrap(wrap) {
    this.#wrap = wrap;
    this.#widest = 0;
    this.#canvas.style.minWidth = "";
    if (!wrap) this.#average = this.#rowHeight;
    this.#off = 0;
    this.redraw();
  }

  setFollow(follow) {
    if (this.#follow !== follow) {
      this.#follow = follow;
      this.#onFollow(follow);
    }
    if (follow) this.toEnd();
  }

  /** The source grew or shrank at its end, or rows it did not have arrived. */
  update() {
    this.#changedLength();
  }

  /** `count` rows were put before (negative: taken from) the first one. */
  shifted(count) {
    this.#top = Math.max(0, this.#top + count);
    this.#changedLength();
  }

  /** Draws every row anew. */
  redraw() {
    this.#drop();
    this.#changedLength();
  }

  toStart() {
    this.setFollow(false);
    this.#go(0, 0);
  }

  toEnd() {
    this.#go(this.#source.length, 0);
  }

  /** Shows a row, in the upper third. */
  reveal(index) {
    this.setFollow(false);
    this.#go(index, -Math.floor(this.#host.clientHeight / 3));
  }

  /** Moves by rows. */
  by(rows) {
    if (rows < 0) this.setFollow(false);
    this.#off += rows * this.#average;
    this.#schedule();
  }

  #go(top, off) {
    this.#top = top;
    this.#off = off;
    this.#moved = -Infinity;
    this.#schedule();
  }

  #drop() {
    this.#elements.clear();
    this.#rows.replaceChildren();
  }

  #resized() {
    const height = this.#probe.getBoundingClientRect().height;
    if (height > 0 && height !== this.#rowHeight) {
      this.#rowHeight = height;
      if (!this.#wrap) this.#average = height;
    }
    this.#pane.style.height = `${this.#host.clientHeight}px`;
    for (const element of this.#elements.values()) element.rowHeight = 0;
    if (this.#atEnd) {
      this.#top = this.#source.length;
      this.#off = 0;
    }
    this.#changedLength();
  }

  #changedLength() {
    this.#height = Math.min(MAX_HEIGHT, Math.max(1, this.#source.length) * this.#average);
    const height = `${Math.ceil(Math.max(this.#height, this.#host.clientHeight))}px`;
    if (this.#canvas.style.height !== height) this.#canvas.style.height = height;
    if (this.#follow) {
      this.#top = this.#source.length;
      this.#off = 0;
    }
    this.#schedule();
  }

  // Whether the scroll bar and the rows are in the same scale, so that positions are exact.
  get #exact() {
    return !this.#wrap && this.#source.length * this.#average <= MAX_HEIGHT;
  }

  get #range() {
    return Math.max(0, Math.ceil(this.#height) - this.#host.clientHeight);
  }

  #wheel(event) {
    if (event.deltaY < 0) this.setFollow(false);
  }

  #scrolled() {
    const y = this.#host.scrollTop;
    const delta = y - this.#y;
    if (Math.abs(delta) < 1) return;
    this.#y = y;
    this.#moved = performance.now();
    const range = this.#range;
    if (y <= 0) {
      this.#top = 0;
      this.#off = 0;
    } else if (y >= range - 1) {
      this.#top = this.#source.length;
      this.#off = 0;
    } else if (this.#exact) {
      this.#top = Math.floor(y / this.#average);
      this.#off = y - this.#top * this.#average;
    } else if (Math.abs(delta) < this.#host.clientHeight * 2) {
      this.#off += delta;
    } else {
      this.#top = Math.floor((y / range) * Math.max(0, this.#source.length - this.page));
      this.#off = 0;
    }
    if (delta < 0 && y < range - 1) this.setFollow(false);
    else if (delta > 0 && y >= range - 1 && !this.#follow) {
      this.#follow = true;
      this.#onFollow(true);
    }
    this.#schedule();
  }

  #schedule() {
    if (this.#frame === 0) {
      this.#frame = requestAnimationFrame(() => {
        this.#frame = 0;
        this.#draw();
      });
    }
  }

  // Puts the scroll bar where it belongs, when the user has not moved it for a moment: doing it during a movement would end
  // the movement.
  #settleSoon() {
    clearTimeout(this.#settle);
    const quiet = performance.now() - this.#moved;
    if (quiet < QUIET_MS) this.#settle = setTimeout(() => this.#schedule(), QUIET_MS - quiet);
  }

  #placeBar() {
    if (performance.now() - this.#moved < QUIET_MS) {
      this.#settleSoon();
      return;
    }
    const range = this.#range;
    let y;
    if (this.#top === 0 && this.#off <= 0) y = 0;
    else if (this.#exact) y = this.#top * this.#average + this.#off;
    else {
      y = ((this.#top + this.#off / this.#average) / Math.max(1, this.#source.length - this.page)) * range;
      y = this.#atEnd ? range : Math.max(2, Math.min(y, range - 2));
    }
    y = Math.min(y, range);
    if (Math.abs(this.#host.scrollTop - y) >= 1) this.#host.scrollTop = y;
    this.#y = this.#host.scrollTop;
  }

  #atEnd = false;

  #element(index) {
    const row = this.#source.get(index);
    let element = this.#elements.get(row.key);
    if (!element || element.row !== row) {
      const fresh = this.#render(row);
      fresh.row = row;
      fresh.rowHeight = 0;
      element?.replaceWith(fresh);
      element = fresh;
      this.#elements.set(row.key, element);
    }
    return element;
  }

  #heightOf(element) {
    if (!this.#wrap) return this.#rowHeight;
    if (!element.rowHeight) {
      if (!element.isConnected) this.#rows.append(element);
      element.rowHeight = element.getBoundingClientRect().height || this.#rowHeight;
    }
    return element.rowHeight;
  }

  #draw() {
    const view = this.#host.clientHeight;
    const length = this.#source.length;
    if (view === 0) return;
    if (length === 0) {
      this.#drop();
      this.#onView({ first: 0, last: -1, length });
      return;
    }
    if (this.#wrap) this.#anchorMeasured(view, length);
    else this.#anchorFixed(view, length);

    const first = Math.max(0, this.#top - OVERSCAN);
    const wanted = [];
    let above = 0;
    for (let i = first; i < this.#top; i += 1) {
      const element = this.#element(i);
      above += this.#heightOf(element);
      wanted.push(element);
    }
    let bottom = -this.#off;
    let last = this.#top;
    let extra = 0;
    for (let i = this.#top; i < length; i += 1) {
      const element = this.#element(i);
      wanted.push(element);
      if (bottom < view) {
        bottom += this.#heightOf(element);
        last = i;
      } else {
        extra += 1;
        if (extra >= OVERSCAN) break;
      }
    }
    this.#place(wanted);
    this.#rows.style.transform = `translateY(${-Math.round(above + this.#off)}px)`;
    if (this.#wrap) {
      const seen = wanted.reduce((sum, element) => sum + (element.rowHeight || 0), 0) / Math.max(1, wanted.filter((e) => e.rowHeight).length);
      if (seen > 0) this.#average = this.#average * 0.9 + seen * 0.1;
    } else {
      const width = this.#rows.scrollWidth;
      if (width > this.#widest) {
        this.#widest = width;
        this.#canvas.style.minWidth = `${width}px`;
      }
    }
    this.#placeBar();
    this.#source.ensure(Math.max(0, first), Math.min(length, last + 1 + OVERSCAN));
    this.#onView({ first: this.#top, last, length });
  }

  #anchorFixed(view, length) {
    const total = length * this.#rowHeight;
    const position = Math.max(0, Math.min(this.#top * this.#rowHeight + this.#off, total - view));
    this.#top = Math.min(length - 1, Math.floor(position / this.#rowHeight));
    this.#off = position - this.#top * this.#rowHeight;
    this.#atEnd = position >= total - view - 1;
  }

  #anchorMeasured(view, length) {
    if (this.#top >= length) {
      this.#top = length;
      this.#off = 0;
    }
    while (this.#off < 0 && this.#top > 0) {
      this.#top -= 1;
      this.#off += this.#heightOf(this.#element(this.#top));
    }
    while (this.#top < length - 1 && this.#off > 0) {
      const height = this.#heightOf(this.#element(this.#top));
      if (this.#off < height) break;
      this.#off -= height;
      this.#top += 1;
    }
    if (this.#off < 0) this.#off = 0;
    let filled = -this.#off;
    for (let i = this.#top; i < length && filled < view; i += 1) filled += this.#heightOf(this.#element(i));
    // Less than a view below the anchor: stand on the last row.
    this.#atEnd = filled <= view + 1;
    while (filled < view && this.#top > 0) {
      this.#top -= 1;
      filled += this.#heightOf(this.#element(this.#top));
    }
    if (this.#atEnd) this.#off = Math.max(0, filled + this.#off - view);
  }

  // Keeps what stays where it is, so that a selection in it lives on.
  #place(wanted) {
    const keep = new Set(wanted);
    for (const [key, element] of this.#elements) {
      if (!keep.has(element)) {
        this.#elements.delete(key);
        element.remove();
      }
    }
    for (const child of [...this.#rows.children]) if (!keep.has(child)) child.remove();
    let at = this.#rows.firstChild;
    for (const element of wanted) {
      if (element === at) at = at.nextSibling;
      else this.#rows.insertBefore(element, at);
    }
  }
}
