// Terminal escape sequences to styled pieces of text. Only SGR (colours and weight) has an effect, everything else that a
// terminal would obey is removed; other control characters and bidirectional overrides are shown, not obeyed.

// CSI …, OSC … BEL or ST, DCS/SOS/PM/APC … ST, and two-character escapes. An unfinished sequence runs to the line's end.
// eslint-disable-next-line no-control-regex
const ESCAPE = /\x1b\[([0-?]*)([ -/]*)([@-~])|\x1b\[[0-?]*[ -/]*$|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\|$)|\x1b[PX^_][^\x1b]*(?:\x1b\\|$)|\x1b[ -/]*[0-~]?|\x9b[0-?]*[ -/]*[@-~]?/g;
// eslint-disable-next-line no-control-regex
const CONTROL = /[\x00-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]/g;

function visible(text) {
  return text.replace(CONTROL, (c) => {
    const code = c.charCodeAt(0);
    if (code < 0x20 || code === 0x7f) return `^${String.fromCharCode(code ^ 0x40)}`;
    return `<${code.toString(16).padStart(4, "0")}>`;
  });
}

const fresh = () => ({ fg: null, bg: null, bold: false, dim: false, italic: false, underline: false, strike: false, inverse: false });

function colour256(n) {
  if (n < 16) return n;
  if (n >= 232) {
    const v = 8 + (n - 232) * 10;
    return `rgb(${v},${v},${v})`;
  }
  const level = (v) => (v === 0 ? 0 : 55 + v * 40);
  n -= 16;
  return `rgb(${level(Math.floor(n / 36))},${level(Math.floor(n / 6) % 6)},${level(n % 6)})`;
}

const isByte = (n) => Number.isInteger(n) && n >= 0 && n <= 255;

function apply(style, params) {
  // 38:2::r:g:b and 38;2;r;g;b mean the same.
  const codes = [];
  for (const part of (params === "" ? "0" : params).split(";")) {
    const sub = part.split(":");
    if (sub.length > 1 && (sub[0] === "38" || sub[0] === "48")) {
      if (sub[1] === "2" && sub.length >= 6) sub.splice(2, 1);
      codes.push(...sub.map(Number));
    } else codes.push(Number(sub[0] || 0));
  }
  for (let i = 0; i < codes.length; i += 1) {
    const code = codes[i];
    if (code === 0) Object.assign(style, fresh());
    else if (code === 1) style.bold = true;
    else if (code === 2) style.dim = true;
    else if (code === 3) style.italic = true;
    else if (code === 4) style.underline = true;
    else if (code === 7) style.inverse = true;
    else if (code === 9) style.strike = true;
    else if (code === 22) style.bold = style.dim = false;
    else if (code === 23) style.italic = false;
    else if (code === 24) style.underline = false;
    else if (code === 27) style.inverse = false;
    else if (code === 29) style.strike = false;
    else if (code >= 30 && code <= 37) style.fg = code - 30;
    else if (code === 39) style.fg = null;
    else if (code >= 40 && code <= 47) style.bg = code - 40;
    else if (code === 49) style.bg = null;
    else if (code >= 90 && code <= 97) style.fg = code - 82;
    else if (code >= 100 && code <= 107) style.bg = code - 92;
    else if (code === 38 || code === 48) {
      const key = code === 38 ? "fg" : "bg";
      if (codes[i + 1] === 5 && isByte(codes[i + 2])) {
        style[key] = colour256(codes[i + 2]);
        i += 2;
      } else if (codes[i + 1] === 2 && codes.slice(i + 2, i + 5).length === 3) {
        const [r, g, b] = codes.slice(i + 2, i + 5);
        if (isByte(r) && isByte(g) && isByte(b)) style[key] = `rgb(${r},${g},${b})`;
        i += 4;
      }
    }
  }
}

/** What a terminal would have left of a line with carriage returns: its last part that is not empty. */
export function afterReturns(line) {
  if (!line.includes("\r")) return line;
  const parts = line.split("\r");
  for (let i = parts.length - 1; i >= 0; i -= 1) if (parts[i] !== "") return parts[i];
  return "";
}

/** Pieces of a line: [{ text, style }], style null for plain text. */
export function parse(line) {
  // eslint-disable-next-line no-control-regex
  if (!/[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/.test(line)) return [{ text: line, style: null }];
  const pieces = [];
  const style = fresh();
  let styled = false;
  let from = 0;
  const push = (text) => {
    if (text !== "") pieces.push({ text: visible(text), style: styled ? { ...style } : null });
  };
  for (const match of line.matchAll(ESCAPE)) {
    push(line.slice(from, match.index));
    from = match.index + match[0].length;
    if (match[3] === "m" && !match[2] && /^[0-9;:]*$/.test(match[1])) {
      apply(style, match[1]);
      styled = Object.values(style).some((v) => v !== null && v !== false);
    }
  }
  push(line.slice(from));
  return pieces;
}

/** The line as it is read: no escape sequences. */
export function plain(line) {
  return parse(afterReturns(line)).map((piece) => piece.text).join("");
}

function isLight(colour) {
  const [r, g, b] = colour.match(/\d+/g).map(Number);
  return r * 0.299 + g * 0.587 + b * 0.114 > 140;
}

/** Gives a span the look of a piece. */
export function dress(span, style) {
  if (!style) return;
  let { fg, bg } = style;
  const classes = [];
  if (style.inverse) {
    classes.push("inv");
    [fg, bg] = [bg, fg];
    if (fg === null) classes.push("inv-fg");
    if (bg === null) classes.push("inv-bg");
  }
  if (typeof bg === "number") classes.push("on", `b${bg}`);
  else if (bg) {
    span.style.backgroundColor = bg;
    classes.push("on", isLight(bg) ? "light" : "deep");
  }
  if (typeof fg === "number") classes.push(`f${fg}`);
  else if (fg) span.style.color = fg;
  for (const key of ["bold", "dim", "italic", "underline", "strike"]) if (style[key]) classes.push(key);
  span.className = classes.join(" ");
}
