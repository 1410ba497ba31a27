// The row of takes: choose, compare as A and B, use as a source, drag into another program, remove.

import { drawPng } from "./picture.js";

export class Takes {
  #list;
  #template;
  #actions;
  all = [];
  current = null;
  a = null;
  b = null;

  /** `actions` are the functions chosen(take), used(take) and compared(). */
  constructor(list, template, actions) {
    this.#list = list;
    this.#template = template;
    this.#actions = actions;
  }

  /** Add a take {name, blob, buffer, picture, ...} in front of the row. */
  add(take) {
    const item = this.#template.content.firstElementChild.cloneNode(true);
    take.item = item;
    item.querySelector(".label").textContent = take.label;
    item.setAttribute("aria-label", take.label);
    if (take.picture) drawPng(item.querySelector("canvas"), take.picture);
    const file = item.querySelector(".file");
    take.url = URL.createObjectURL(take.blob);
    file.href = take.url;
    file.download = take.name;
    file.addEventListener("dragstart", (event) => {
      event.dataTransfer.setData("DownloadURL", `audio/wav:${take.name}:${take.url}`);
      event.dataTransfer.effectAllowed = "copy";
    });
    item.addEventListener("click", (event) => {
      if (!event.target.closest("button, a")) this.choose(take);
    });
    item.addEventListener("keydown", (event) => {
      if (event.target !== item) return;
      if (event.key === "Enter") this.choose(take);
      else if (event.key === "Delete") this.remove(take);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    item.querySelector(".as-a").addEventListener("click", () => this.compare("a", take));
    item.querySelector(".as-b").addEventListener("click", () => this.compare("b", take));
    item.querySelector(".use").addEventListener("click", () => this.#actions.used(take));
    item.querySelector(".remove").addEventListener("click", () => this.remove(take));
    this.all.unshift(take);
    this.#list.prepend(item);
    if (!this.a) this.a = take;
    else if (!this.b) this.b = take;
    this.choose(take);
  }

  choose(take) {
    this.current = take;
    this.#mark();
    this.#actions.chosen(take);
  }

  /** Choose the other one of A and B. */
  swap() {
    if (this.a && this.b) this.choose(this.current === this.a ? this.b : this.a);
  }

  compare(place, take) {
    this[place] = take;
    this.#mark();
    this.#actions.compared();
  }

  remove(take) {
    this.all = this.all.filter((other) => other !== take);
    take.item.remove();
    URL.revokeObjectURL(take.url);
    for (const place of ["a", "b"]) if (this[place] === take) this[place] = null;
    if (this.current === take) this.choose(this.all[0] ?? null);
    else this.#mark();
    this.#actions.compared();
  }

  #mark() {
    for (const take of this.all) {
      take.item.setAttribute("aria-current", String(take === this.current));
      take.item.querySelector(".as-a").setAttribute("aria-pressed", String(take === this.a));
      take.item.querySelector(".as-b").setAttribute("aria-pressed", String(take === this.b));
    }
  }
}
