// Loads the images of the task that probably comes next, so that it appears at once.

import { call } from "./api.js";

export class Ahead {
  constructor() {
    this.images = new Map();
  }

  /** Asks what comes next and decodes its images; a failure costs nothing but the head start. */
  async look() {
    let sources;
    try {
      ({ sources } = await call("ahead"));
    } catch {
      return; // the task itself will tell that the connection is lost
    }
    this.images = new Map(
      sources.map((src) => [src, this.images.get(src) ?? this.load(src)]),
    );
  }

  load(src) {
    const image = new Image();
    image.src = src;
    // Decoded pixels may be dropped again; the bytes stay in the browser's cache.
    const decoded = image.decode().then(
      () => image,
      () => null,
    );
    return { image, decoded };
  }

  /** A decoded image of this source, or null where none was loaded ahead. */
  async take(src) {
    const known = this.images.get(src);
    this.images.delete(src);
    return known ? known.decoded : null;
  }
}
