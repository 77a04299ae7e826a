"use strict";
/* Draws up to some hundred thousand points on a plain canvas, pixel by pixel. 200,000 points take about 20 ms. WebGL
   would be faster, but its libraries generate shader code at run time, which a strict content security policy forbids.
   Many remote desktops do not have WebGL, either. */
class Scatter {
  /* points: {x, y: Float32Array in 0..1, n, order: drawing order}; back: the same for the background points. */
  constructor(canvas, points, back, on) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.points = points;
    this.back = back;
    this.on = on;
    this.colors = new Uint32Array(points.n);
    this.visible = new Uint8Array(points.n).fill(1);
    this.selected = null;
    this.hovered = -1;
    this.showBack = true;
    this.lasso = null;
    this.selecting = false;
    this.reset();
    this.grid = Scatter.gridOf(points);
    this.listen();
    new ResizeObserver(() => this.resize()).observe(canvas.parentElement);
    this.resize();
  }

  static gridOf(points) {
    const side = Math.max(1, Math.min(256, Math.ceil(Math.sqrt(points.n / 4))));
    const start = new Uint32Array(side * side + 1), items = new Uint32Array(points.n);
    const at = new Uint32Array(points.n);
    for (let i = 0; i < points.n; i++) {
      const cx = Math.min(side - 1, Math.floor(points.x[i] * side));
      const cy = Math.min(side - 1, Math.floor(points.y[i] * side));
      at[i] = cy * side + cx;
      start[at[i] + 1]++;
    }
    for (let k = 0; k < side * side; k++) start[k + 1] += start[k];
    const next = start.slice();
    for (let i = 0; i < points.n; i++) items[next[at[i]]++] = i;
    return { side, start, items };
  }

  reset() {
    this.view = { x: 0.5, y: 0.5, zoom: 1 };
    this.redraw();
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const box = this.canvas.parentElement.getBoundingClientRect();
    this.ratio = ratio;
    this.width = Math.max(1, Math.round(box.width * ratio));
    this.height = Math.max(1, Math.round(box.height * ratio));
    this.canvas.width = this.width;
    this.canvas.height = this.height;
    this.image = this.context.createImageData(this.width, this.height);
    this.pixels = new Uint32Array(this.image.data.buffer);
    this.redraw();
  }

  scale() {
    return 0.92 * Math.min(this.width, this.height) * this.view.zoom;
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  static disc(radius, width) {
    const reach = Math.ceil(radius), offsets = [], cover = [];
    for (let dy = -reach; dy <= reach; dy++)
      for (let dx = -reach; dx <= reach; dx++) {
        const c = Math.max(0, Math.min(1, radius + 0.5 - Math.hypot(dx, dy)));
        if (c > 0) {
          offsets.push(dy * width + dx);
          cover.push(Math.round(c * 256));
        }
      }
    return { reach, offsets: Int32Array.from(offsets), cover: Int32Array.from(cover) };
  }

  radius() {
    const n = this.points.n;
    const base = n < 2000 ? 3.2 : n < 10000 ? 2.4 : n < 50000 ? 1.7 : 1.2;
    return Math.min(7, base * Math.pow(this.view.zoom, 0.35)) * this.ratio;
  }

  draw() {
    if (!this.pixels) return;
    const { pixels, width, height, view } = this, scale = this.scale();
    pixels.fill(this.paper ?? 0xffffffff);
    const left = width / 2 - view.x * scale, top = height / 2 - (1 - view.y) * scale;
    const put = (x, y, color, disc, alpha) => {
      const px = Math.round(left + x * scale), py = Math.round(top + (1 - y) * scale);
      if (px < disc.reach || py < disc.reach || px >= width - disc.reach || py >= height - disc.reach) return;
      const at = py * width + px, r = color & 255, g = (color >> 8) & 255, b = (color >> 16) & 255;
      for (let k = 0; k < disc.offsets.length; k++) {
        const where = at + disc.offsets[k], c = (disc.cover[k] * alpha) >> 8;
        if (c >= 256) {
          pixels[where] = color;
          continue;
        }
        const old = pixels[where], d = 256 - c;
        pixels[where] =
          (0xff000000 |
            ((((old >> 16) & 255) * d + b * c) >> 8 << 16) |
            ((((old >> 8) & 255) * d + g * c) >> 8 << 8) |
            (((old & 255) * d + r * c) >> 8)) >>> 0;
      }
    };
    const disc = Scatter.disc(this.radius(), width);
    if (this.showBack) {
      const small = Scatter.disc(this.radius() * 0.8, width), { x, y, n } = this.back;
      for (let i = 0; i < n; i++) put(x[i], y[i], this.backColor, small, 200);
    }
    const { x, y, order } = this.points, chosen = this.selected;
    for (let k = 0; k < order.length; k++) {
      const i = order[k];
      if (this.visible[i]) put(x[i], y[i], this.colors[i], disc, chosen && !chosen[i] ? 40 : 256);
    }
    this.context.putImageData(this.image, 0, 0);
    if (this.hovered >= 0) this.ring(this.hovered);
    if (this.lasso && this.lasso.length > 1) this.outline();
  }

  ring(i) {
    const [px, py] = this.screen(i), c = this.context;
    c.beginPath();
    c.arc(px, py, this.radius() + 3 * this.ratio, 0, 2 * Math.PI);
    c.lineWidth = 2 * this.ratio;
    c.strokeStyle = this.ink;
    c.stroke();
  }

  outline() {
    const c = this.context;
    c.beginPath();
    this.lasso.forEach(([x, y], k) => (k ? c.lineTo(x, y) : c.moveTo(x, y)));
    c.closePath();
    c.lineWidth = 1.5 * this.ratio;
    c.strokeStyle = this.ink;
    c.stroke();
  }

  screen(i) {
    const scale = this.scale();
    return [
      this.width / 2 + (this.points.x[i] - this.view.x) * scale,
      this.height / 2 + (this.view.y - this.points.y[i]) * scale,
    ];
  }

  plane(px, py) {
    const scale = this.scale();
    return [this.view.x + (px - this.width / 2) / scale, this.view.y - (py - this.height / 2) / scale];
  }

  nearest(px, py) {
    const [x, y] = this.plane(px, py), { side, start, items } = this.grid;
    const reach = (this.radius() + 5 * this.ratio) / this.scale();
    let best = -1, least = reach * reach;
    const from = (v) => Math.max(0, Math.min(side - 1, Math.floor((v - reach) * side)));
    const to = (v) => Math.max(0, Math.min(side - 1, Math.floor((v + reach) * side)));
    for (let cy = from(y); cy <= to(y); cy++)
      for (let cx = from(x); cx <= to(x); cx++)
        for (let k = start[cy * side + cx]; k < start[cy * side + cx + 1]; k++) {
          const i = items[k], dx = this.points.x[i] - x, dy = this.points.y[i] - y, d = dx * dx + dy * dy;
          if (d < least && this.visible[i]) {
            least = d;
            best = i;
          }
        }
    return best;
  }

  zoomBy(factor, px = this.width / 2, py = this.height / 2) {
    const before = this.plane(px, py);
    this.view.zoom = Math.max(0.5, Math.min(400, this.view.zoom * factor));
    const after = this.plane(px, py);
    this.view.x += before[0] - after[0];
    this.view.y += before[1] - after[1];
    this.redraw();
  }

  panBy(dx, dy) {
    const scale = this.scale();
    this.view.x -= dx / scale;
    this.view.y += dy / scale;
    this.redraw();
  }

  select(polygon) {
    const chosen = new Uint8Array(this.points.n);
    let n = 0;
    for (let i = 0; i < this.points.n; i++) {
      if (!this.visible[i]) continue;
      const [px, py] = this.screen(i);
      let inside = false;
      for (let a = 0, b = polygon.length - 1; a < polygon.length; b = a++) {
        const [ax, ay] = polygon[a], [bx, by] = polygon[b];
        if (ay > py !== by > py && px < ((bx - ax) * (py - ay)) / (by - ay) + ax) inside = !inside;
      }
      if (inside) {
        chosen[i] = 1;
        n++;
      }
    }
    this.selected = n ? chosen : null;
    this.redraw();
    this.on.select(this.selected);
  }

  listen() {
    const canvas = this.canvas;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [(event.clientX - box.left) * this.ratio, (event.clientY - box.top) * this.ratio];
    };
    let drag = null;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      drag = at(event);
      if (this.selecting || event.shiftKey) this.lasso = [drag];
    });
    canvas.addEventListener("pointermove", (event) => {
      const here = at(event);
      if (this.lasso) {
        this.lasso.push(here);
        this.redraw();
      } else if (drag) {
        this.panBy(here[0] - drag[0], here[1] - drag[1]);
        drag = here;
      }
      const found = drag ? -1 : this.nearest(...here);
      if (found !== this.hovered) {
        this.hovered = found;
        this.redraw();
      }
      this.on.hover(found, here[0] / this.ratio, here[1] / this.ratio);
    });
    const end = () => {
      if (this.lasso) {
        const polygon = this.lasso;
        this.lasso = null;
        if (polygon.length > 2) this.select(polygon);
        else this.redraw();
      }
      drag = null;
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("pointerleave", () => {
      this.hovered = -1;
      this.on.hover(-1, 0, 0);
      this.redraw();
    });
    canvas.addEventListener("dblclick", (event) => this.zoomBy(2, ...at(event)));
    /* The wheel scrolls the page, as everywhere else, unless the map has the focus or Ctrl is held. */
    canvas.addEventListener(
      "wheel",
      (event) => {
        if (document.activeElement !== canvas && !event.ctrlKey) return;
        event.preventDefault();
        this.zoomBy(Math.exp(-event.deltaY * 0.002), ...at(event));
      },
      { passive: false },
    );
    canvas.addEventListener("keydown", (event) => {
      const step = 60 * this.ratio;
      const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
      if (moves[event.key]) this.panBy(...moves[event.key]);
      else if (event.key === "+" || event.key === "=") this.zoomBy(1.4);
      else if (event.key === "-") this.zoomBy(1 / 1.4);
      else if (event.key === "0") this.reset();
      else if (event.key === "Escape" && this.selected) {
        this.selected = null;
        this.redraw();
        this.on.select(null);
      } else return;
      event.preventDefault();
    });
  }
}
