// Run inside a page, in a frame: leaves what is wrong with its layout, as JSON, in place of the document around the frame.

const page = document.documentElement.clientWidth;
const style = el => getComputedStyle(el);
const box = el => el.getBoundingClientRect();
const told = el => `${el.tagName.toLowerCase()}: ${el.textContent.trim().slice(0, 40)}`;
const shown = [...document.body.querySelectorAll("*:not(script, style)")].filter(el => box(el).width && box(el).height);

// Wider than the page, other than inside something that scrolls by itself.
const scrollers = shown.filter(el => ["auto", "scroll"].includes(style(el).overflowX));
const wide = shown
  .filter(el => !scrollers.some(scroller => scroller !== el && scroller.contains(el)))
  .filter(el => box(el).right > page + 1 || box(el).left < -1).map(told);

// Words of a drawing that lie on each other, or beyond its edge.
const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
const within = (a, b) => a.left > b.left - 1 && a.right < b.right + 1 && a.top > b.top - 1 && a.bottom < b.bottom + 1;
const over = [], cut = [], sizes = [];
for (const drawing of document.querySelectorAll("svg")) {
  const texts = [...drawing.querySelectorAll("text")];
  const frame = box(drawing);
  texts.forEach((text, i) => {
    const scale = Math.hypot(text.getScreenCTM().a, text.getScreenCTM().b);
    sizes.push(scale * parseFloat(style(text).fontSize));
    if (!within(box(text), frame)) cut.push(told(text));
    over.push(...texts.slice(0, i).filter(other => meet(box(text), box(other))).map(other => `${told(text)}, ${told(other)}`));
  });
}

// Text that hardly stands out from what is behind it: WCAG 2's contrast below 4.5.
const channels = colour => colour.match(/[\d.]+/g).map(Number);
const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
const opaque = colour => colour.length < 4 || colour[3] === 1;
const ground = el => {
  for (; el; el = el.parentElement) {
    const colour = channels(style(el).backgroundColor);
    if (opaque(colour)) return colour;
  }
  return [255, 255, 255];
};
const contrast = el => {
  const ink = channels(el.closest("svg") ? style(el).fill : style(el).color);
  const [low, high] = [luminance(ink), luminance(ground(el))].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
const speaks = el => [...el.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
const faint = shown.filter(speaks).filter(el => contrast(el) < 4.5).map(told);

parent.document.body.textContent = JSON.stringify({
  width: page, dark: matchMedia("(prefers-color-scheme: dark)").matches, smallest: Math.min(100, ...sizes), wide, over, cut, faint,
});
