// The points of all curves, known by what they are: series, round, step. A point that comes twice (reload, reconnect,
// overlapping reads) is the same point; a newer attempt of a site in a round replaces what the older one measured.
// A point is [attempt, round, step, x, seconds, value]; fedportal/monitoring/figures.py makes them.

export const [ATTEMPT, ROUND, STEP, X, SECONDS, VALUE] = [0, 1, 2, 3, 4, 5];

export class SeriesStore {
  #series = new Map(); // key → {site, phase, name, region, points: Map(round.step → point), sorted}
  #newest = new Map(); // site|round → newest attempt that measured anything

  /** Take series as the server sends them; say whether anything changed. */
  add(list) {
    let changed = false;
    for (const { site, phase, name, region, points } of list) {
      for (const point of points) {
        if (!this.#admits(site, point)) continue;
        const series = this.#of(site, phase, name, region);
        const place = `${point[ROUND]}.${point[STEP]}`;
        const known = series.points.get(place);
        if (known && known[VALUE] === point[VALUE] && known[ATTEMPT] === point[ATTEMPT]) continue;
        series.points.set(place, point);
        series.sorted = null;
        changed = true;
      }
    }
    return changed;
  }

  /** The points of a series in the order of their steps; empty when it has none. */
  points(site, phase, name, region) {
    const series = this.#series.get([site, phase, name, region].join("|"));
    if (!series) return [];
    series.sorted ??= [...series.points.values()].sort((a, b) => a[ROUND] - b[ROUND] || a[STEP] - b[STEP]);
    return series.sorted;
  }

  has(name) {
    for (const series of this.#series.values()) if (series.name === name && series.points.size) return true;
    return false;
  }

  /** How far a site has come with the training of a round, 0 to 1. */
  progress(site, round) {
    const points = this.points(site, "train", "loss", "");
    const last = points[points.length - 1];
    return last && last[ROUND] === round ? last[X] - (round - 1) : 0;
  }

  get size() {
    let count = 0;
    for (const series of this.#series.values()) count += series.points.size;
    return count;
  }

  #of(site, phase, name, region) {
    const key = [site, phase, name, region].join("|");
    if (!this.#series.has(key)) this.#series.set(key, { site, phase, name, region, points: new Map(), sorted: null });
    return this.#series.get(key);
  }

  #admits(site, point) {
    const place = `${site}|${point[ROUND]}`;
    const newest = this.#newest.get(place) ?? 0;
    if (point[ATTEMPT] < newest) return false;
    if (point[ATTEMPT] > newest) {
      this.#newest.set(place, point[ATTEMPT]);
      this.#forget(site, point[ROUND]);
    }
    return true;
  }

  #forget(site, round) {
    for (const series of this.#series.values()) {
      if (series.site !== site) continue;
      for (const [place, point] of series.points) if (point[ROUND] === round) series.points.delete(place);
      series.sorted = null;
    }
  }
}
