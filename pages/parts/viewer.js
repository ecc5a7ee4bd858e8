// The 3D view of a scored structure. Numbers arrive as data (fdcore.scene), text is written with textContent only.
// 3Dmol.js comes from the app's own static folder; nothing else is loaded.

// Above this many drawn atoms there are no bonds; arrows go to the atoms that matter most.
const MANY_ATOMS = 2000;
const MOST_ARROWS = 1500;
// Above this many, edges are not smoothed by drawing at twice the resolution: turning the view stays fluid.
const PLAIN_EDGES = 4000;
// Between two frames of a trajectory that plays.
const FRAME_MS = 90;
const COLOURINGS = {
  force_delta: "Disagreement u_i",
  force_direct: "Direct force |F_nc|",
  force_conservative: "Conservative force |F_c|",
  confidence: "Confidence head: expected error",
  ensemble_spread: "Spread of the ensemble",
};
const ARROW_COLOURS = { forces_direct: "#d9772b", forces_conservative: "#2f7ebc", difference: "#c2328f" };

// What a person set stays set for the next structure.
let options = { colour: "force_delta", arrows: "none", length: 0, cells: 1, outline: true, bonds: true, spin: false };
const mounted = new WeakMap();
let library;

function load3Dmol(address) {
  library ??= new Promise((resolve, reject) => {
    if (window.$3Dmol) return resolve(window.$3Dmol);
    const script = document.createElement("script");
    script.src = address;
    script.onload = () => resolve(window.$3Dmol);
    script.onerror = () => reject(new Error("the 3D library did not load"));
    document.head.appendChild(script);
  });
  return library;
}

export default function (component) {
  const { data, parentElement, setStateValue } = component;
  let view = mounted.get(parentElement);
  if (!view) {
    view = new View(parentElement.querySelector(".fd-viewer"));
    mounted.set(parentElement, view);
  }
  view.select = (atom) => setStateValue("selected", atom);
  view.tell = (frame) => setStateValue("frame", frame);
  view.update(data);
  return () => {
    view.destroy();
    mounted.delete(parentElement);
  };
}

class View {
  constructor(root) {
    this.root = root;
    this.stage = root.querySelector(".stage");
    this.inputs = [...root.querySelectorAll("[data-option]")];
    for (const input of this.inputs) input.addEventListener("input", () => this.changed(input));
    root.querySelector(".reset").addEventListener("click", () => this.reset());
    [this.player, this.play, this.moment, this.when] = ["player", "play", "moment", "when"].map((name) => root.querySelector(`.${name}`));
    this.play.addEventListener("click", () => (this.timer ? this.pause() : this.run()));
    this.moment.addEventListener("input", () => { this.halt(); this.show(Number(this.moment.value)); });
    this.moment.addEventListener("change", () => this.tell(this.frame));
    // The page scrolls until the view was clicked or focused; only then does the wheel zoom.
    this.stage.addEventListener("wheel", (event) => {
      if (!this.root.contains(document.activeElement) && this.stage.getRootNode().activeElement !== this.stage) {
        event.stopPropagation();
      }
    }, { capture: true, passive: true });
    this.stage.addEventListener("pointerdown", () => this.stage.focus({ preventScroll: true }), { capture: true });
    this.stage.addEventListener("keydown", (event) => this.key(event));
  }

  async update(data) {
    this.data = data;
    try {
      const library = await load3Dmol(data.library);
      if (this.data !== data) return;
      this.library = library;
      if (!this.viewer) this.create(false);
    } catch (error) {
      this.sorry();
      return;
    }
    if (this.shown !== data.scene.id) this.newScene();
    else {
      this.later(data.scene);
      if (this.asked(data)) this.show(data.frame);
      this.halo();
    }
  }

  // A running simulation sends the same scene with more frames; what is shown stays.
  later(scene) {
    if (!scene.frames || !this.scene.frames) return;
    this.scene.frames = scene.frames;
    this.scene.values.force_delta.top = scene.values.force_delta.top;
    this.moment.max = scene.frames.time.length - 1;
    this.legend();
  }

  // The page points at a moment: only a new wish counts, or a view that plays would be pulled back.
  asked(data) {
    const wish = data.frame ?? null, fresh = wish !== null && wish !== this.wish;
    this.wish = wish;
    return fresh && wish !== this.frame;
  }

  show(frame) {
    const { scene } = this, { frames } = scene;
    this.frame = Math.max(0, Math.min(frame, frames.time.length - 1));
    scene.positions = frames.positions[this.frame];
    if (frames.cell) scene.cell = frames.cell[this.frame];
    scene.values.force_delta.numbers = frames.force_delta[this.frame];
    this.moment.value = this.frame;
    this.when.textContent = frames.time[this.frame];
    this.root.dataset.frame = this.frame;
    this.build();
  }

  run() {
    const { time } = this.scene.frames;
    if (this.frame >= time.length - 1) this.frame = -1;
    this.play.textContent = "Pause";
    this.play.setAttribute("aria-pressed", "true");
    this.timer = setInterval(() => {
      if (this.frame >= this.scene.frames.time.length - 1) return this.pause();
      this.show(this.frame + 1);
    }, FRAME_MS);
  }

  halt() {
    clearInterval(this.timer);
    this.timer = null;
    this.play.textContent = "Play";
    this.play.setAttribute("aria-pressed", "false");
  }

  pause() {
    this.halt();
    this.tell(this.frame);
  }

  // A viewer with smooth or plain edges; that is fixed when its canvas is made.
  create(plain) {
    const old = this.stage.querySelector("canvas");
    old?.getContext("webgl2")?.getExtension("WEBGL_lose_context")?.loseContext();
    this.stage.replaceChildren();
    this.plain = plain;
    this.viewer = this.library.createViewer(this.stage, { backgroundAlpha: 0, antialias: !plain });
    if (!this.viewer) throw new Error("no WebGL");
    this.viewer.setViewChangeCallback(() => { this.root.dataset.frames = Number(this.root.dataset.frames ?? 0) + 1; });
    // The canvas stays see-through; its background colour is what the fog fades into.
    this.viewer.setBackgroundColor(getComputedStyle(this.stage).backgroundColor, 0);
  }

  newScene() {
    const scene = (this.scene = this.data.scene);
    this.shown = scene.id;
    this.root.dataset.ready = "false";
    this.stage.setAttribute("aria-label", `${scene.formula}, ${scene.element.length} atoms in 3D; arrow keys turn, plus and minus zoom`);
    for (const part of this.root.querySelectorAll(".crystal")) part.hidden = !scene.cell;
    this.halt();
    this.player.hidden = !scene.frames;
    this.root.querySelector(".arrows").hidden = !scene.forces_direct;
    if (!scene.forces_direct) options.arrows = "none";
    const colour = this.root.querySelector('[data-option="colour"]');
    const names = [...Object.keys(COLOURINGS).filter((name) => name in scene.values), "element"];
    colour.replaceChildren(...names.map((name) => new Option(COLOURINGS[name] ?? "Element", name)));
    if (!names.includes(options.colour)) options.colour = "force_delta";
    for (const input of this.inputs) {
      if (input.type === "checkbox") input.checked = options[input.dataset.option];
      else input.value = options[input.dataset.option];
    }
    if (scene.frames) {
      this.moment.max = scene.frames.time.length - 1;
      this.asked(this.data);
      this.show(this.data.frame ?? 0);
    } else this.build();
    this.reset();
  }

  changed(input) {
    const name = input.dataset.option;
    options = { ...options, [name]: input.type === "checkbox" ? input.checked : input.type === "range" ? Number(input.value) : input.value };
    if (name === "spin") return void this.viewer?.spin(options.spin ? "y" : false, 0.5);
    if (name === "colour") { this.paint(); this.viewer.render(); this.legend(); }
    else if (name === "arrows" || name === "length" || name === "outline") this.shapes();
    else { this.build(); if (name === "cells") this.reset(); }
  }

  // Atoms, repeated over the cells asked for. One style per element with one colour function for all: no object per sphere.
  build() {
    const { scene } = this;
    const n = scene.element.length;
    const repeat = scene.cell ? Number(options.cells) : 1;
    const plain = n * repeat ** 3 > PLAIN_EDGES;
    const remade = plain !== this.plain;
    if (remade) this.create(plain);
    const { viewer } = this;
    viewer.removeAllModels();
    const atoms = [];
    for (let a = 0; a < repeat; a++) for (let b = 0; b < repeat; b++) for (let c = 0; c < repeat; c++) {
      const shift = scene.cell ? [0, 1, 2].map((k) => a * scene.cell[0][k] + b * scene.cell[1][k] + c * scene.cell[2][k]) : [0, 0, 0];
      for (let i = 0; i < n; i++) {
        atoms.push({
          elem: scene.elements[scene.element[i]].symbol, atom: i,
          x: scene.positions[3 * i] + shift[0], y: scene.positions[3 * i + 1] + shift[1], z: scene.positions[3 * i + 2] + shift[2],
        });
      }
    }
    this.drawn = atoms;
    this.bonded = options.bonds && atoms.length <= MANY_ATOMS;
    if (this.bonded) addBonds(atoms, scene);
    viewer.addModel().addAtoms(atoms);
    viewer.setClickable({}, true, (atom) => this.select(atom.atom));
    this.paint();
    this.shapes();
    this.legend();
    if (remade) this.reset();
    if (options.spin) viewer.spin("y", 0.5);
  }

  paint() {
    const { scene, viewer } = this;
    const colour = this.colouring();
    for (const element of scene.elements) {
      const style = { sphere: { radius: element.ball, colorfunc: colour } };
      if (this.bonded) style.stick = { radius: 0.09, colorfunc: colour };
      viewer.setStyle({ elem: element.symbol }, style);
    }
  }

  colouring() {
    const { scene } = this;
    if (options.colour === "element") return (atom) => scene.elements[scene.element[atom.atom]].color;
    const { numbers, top } = scene.values[options.colour];
    // 64 steps of the scale, as numbers: building a colour string per atom would cost more than drawing it.
    const steps = Array.from({ length: 64 }, (_, k) => mix(scene.scale, k / 63));
    return (atom) => steps[Math.min(63, Math.max(0, Math.round((63 * numbers[atom.atom]) / top)))];
  }

  // Cell, arrows and the mark of the chosen atom.
  shapes() {
    const { scene, viewer } = this;
    viewer.removeAllShapes();
    this.mark = null;
    if (scene.cell && options.outline) outline(viewer, scene.cell);
    this.root.querySelector(".length").hidden = options.arrows === "none";
    this.arrows();
    this.halo();
  }

  arrows() {
    const { scene, viewer } = this;
    this.note = this.drawn.length > MANY_ATOMS && options.bonds ? `No bonds above ${MANY_ATOMS.toLocaleString("en")} atoms.` : "";
    if (options.arrows === "none") return;
    const vector = (i, k) => options.arrows === "difference"
      ? scene.forces_direct[3 * i + k] - scene.forces_conservative[3 * i + k] : scene[options.arrows][3 * i + k];
    const lengths = scene.element.map((_, i) => Math.hypot(vector(i, 0), vector(i, 1), vector(i, 2)));
    const longest = Math.max(...[...lengths].sort((a, b) => b - a).slice(0, 1), 0);
    if (longest === 0) return;
    // The longest arrow is 3 Å at slider zero; both forces share that scale through the common top.
    const top = options.arrows === "difference" ? longest : scene.values.force_direct.top;
    const perUnit = (3 / top) * 2 ** options.length;
    let chosen = this.drawn.filter((atom) => lengths[atom.atom] * perUnit > 0.05);
    if (chosen.length > MOST_ARROWS) {
      chosen = chosen.sort((a, b) => lengths[b.atom] - lengths[a.atom]).slice(0, MOST_ARROWS);
      this.note += ` Arrows on the ${MOST_ARROWS.toLocaleString("en")} largest only.`;
    }
    const shape = viewer.addShape({ color: ARROW_COLOURS[options.arrows] });
    for (const atom of chosen) {
      const end = { x: atom.x + perUnit * vector(atom.atom, 0), y: atom.y + perUnit * vector(atom.atom, 1), z: atom.z + perUnit * vector(atom.atom, 2) };
      shape.addArrow({ start: { x: atom.x, y: atom.y, z: atom.z }, end, radius: 0.09, radiusRatio: 2.2, mid: 0.7 });
    }
    this.note += ` 1 Å of arrow is ${number(1 / perUnit)} eV/Å.`;
  }

  halo() {
    const { viewer, data } = this;
    if (this.mark) viewer.removeShape(this.mark);
    this.mark = null;
    const atom = data.selected === null ? undefined : this.drawn[data.selected];
    if (atom) {
      const radius = this.scene.elements[this.scene.element[atom.atom]].ball * 1.35;
      const center = { x: atom.x, y: atom.y, z: atom.z };
      this.mark = viewer.addSphere({ center, radius, color: "#d9772b", wireframe: true, linewidth: 2 });
    }
    viewer.render();
    this.root.querySelector(".note").textContent = this.note.trim();
    requestAnimationFrame(() => {
      this.root.dataset.atoms = this.drawn.length;
      this.root.dataset.selected = data.selected ?? "";
      this.root.dataset.ready = "true";
    });
  }

  legend() {
    const { scene, root } = this;
    const [what, from, ramp, to] = ["what", "from", "ramp", "to"].map((name) => root.querySelector(`.${name}`));
    root.querySelector(".swatches")?.remove();
    const byElement = options.colour === "element";
    for (const part of [from, ramp, to]) part.hidden = byElement;
    ramp.style.display = byElement ? "none" : "";
    what.textContent = byElement ? "Element" : COLOURINGS[options.colour];
    if (byElement) {
      const swatches = document.createElement("span");
      swatches.className = "swatches";
      for (const element of scene.elements) {
        const swatch = document.createElement("span"), dot = document.createElement("i");
        swatch.className = "swatch";
        dot.style.background = element.color;
        swatch.append(dot, element.symbol);
        swatches.append(swatch);
      }
      what.after(swatches);
      return;
    }
    ramp.style.background = `linear-gradient(to right, ${scene.scale.join(", ")})`;
    to.textContent = `${number(scene.values[options.colour].top)} eV/Å`;
  }

  reset() {
    this.viewer.setView([0, 0, 0, 0, 0, 0, 0, 1]);
    this.viewer.zoomTo();
    this.viewer.rotate(-72, "x");
    this.viewer.rotate(18, "y");
    this.viewer.zoom(1.1);
    this.viewer.render();
  }

  key(event) {
    const turns = { ArrowLeft: ["y", -8], ArrowRight: ["y", 8], ArrowUp: ["x", -8], ArrowDown: ["x", 8] };
    if (!this.viewer) return;
    if (event.key in turns) this.viewer.rotate(turns[event.key][1], turns[event.key][0]);
    else if (event.key === "+" || event.key === "=") this.viewer.zoom(1.15);
    else if (event.key === "-") this.viewer.zoom(1 / 1.15);
    else return;
    event.preventDefault();
    this.viewer.render();
  }

  sorry() {
    const text = document.createElement("p");
    text.textContent = "This browser shows no 3D here (WebGL is switched off or unavailable). Every number is in the tables below.";
    this.stage.replaceChildren(text);
    this.root.dataset.ready = "failed";
  }

  destroy() {
    clearInterval(this.timer);
    this.viewer?.spin(false);
    this.viewer?.removeAllModels();
    this.viewer?.removeAllShapes();
  }
}

function mix(scale, share) {
  const place = share * (scale.length - 1), k = Math.min(Math.floor(place), scale.length - 2), part = place - k;
  const [a, b] = [parseInt(scale[k].slice(1), 16), parseInt(scale[k + 1].slice(1), 16)];
  const channel = (shift) => Math.round(((a >> shift) & 255) * (1 - part) + ((b >> shift) & 255) * part);
  return (channel(16) << 16) | (channel(8) << 8) | channel(0);
}

function number(value) {
  return Number(value.toPrecision(3)).toString();
}

function outline(viewer, cell) {
  const corner = (a, b, c) => ({
    x: a * cell[0][0] + b * cell[1][0] + c * cell[2][0],
    y: a * cell[0][1] + b * cell[1][1] + c * cell[2][1],
    z: a * cell[0][2] + b * cell[1][2] + c * cell[2][2],
  });
  for (let p = 0; p < 2; p++) for (let q = 0; q < 2; q++) {
    for (const [start, end] of [[corner(0, p, q), corner(1, p, q)], [corner(p, 0, q), corner(p, 1, q)], [corner(p, q, 0), corner(p, q, 1)]]) {
      viewer.addLine({ start, end, color: "#7f8c93", linewidth: 2 });
    }
  }
}

// Two atoms are bonded within 1.15 times their covalent radii; a grid keeps this linear in the number of atoms.
function addBonds(atoms, scene) {
  const radius = (atom) => scene.elements[scene.element[atom.atom]].bond;
  const size = 2.3 * Math.max(...scene.elements.map((element) => element.bond));
  const grid = new Map();
  const place = (atom) => [atom.x, atom.y, atom.z].map((x) => Math.floor(x / size));
  atoms.forEach((atom, i) => {
    atom.index = i;
    atom.bonds = [];
    atom.bondOrder = [];
    const key = place(atom).join();
    if (!grid.has(key)) grid.set(key, []);
    grid.get(key).push(i);
  });
  atoms.forEach((atom, i) => {
    const [x, y, z] = place(atom);
    for (let dx = -1; dx < 2; dx++) for (let dy = -1; dy < 2; dy++) for (let dz = -1; dz < 2; dz++) {
      for (const j of grid.get([x + dx, y + dy, z + dz].join()) ?? []) {
        if (j <= i) continue;
        const other = atoms[j];
        const distance = Math.hypot(atom.x - other.x, atom.y - other.y, atom.z - other.z);
        if (distance > 0.2 && distance < 1.15 * (radius(atom) + radius(other))) {
          atom.bonds.push(j); atom.bondOrder.push(1);
          other.bonds.push(i); other.bondOrder.push(1);
        }
      }
    }
  });
}
