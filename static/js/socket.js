// A websocket that comes back: after a lost line, a restarted portal or a sleeping laptop it goes on from its cursor.

const FIRST_PAUSE = 400; // milliseconds
const LONGEST_PAUSE = 15000;
const SILENCE = 25000; // the server gives a sign of life every 10 s; a line without one is dead
const REFUSED = new Set([4401, 4404]);

export class Tail {
  #address;
  #on;
  #pause = FIRST_PAUSE;
  #socket = null;
  #watch = 0;
  #retry = 0;

  /** address(): where to connect now. on: {message(data), status("live" | "reconnecting" | "refused", code)}. */
  constructor(address, on) {
    this.#address = address;
    this.#on = on;
    addEventListener("online", () => this.#reconnectNow());
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.#reconnectNow(); });
    addEventListener("pageshow", (event) => { if (event.persisted) this.#reconnectNow(); });
    this.#connect();
  }

  #connect() {
    const socket = new WebSocket(this.#address());
    this.#socket = socket;
    this.#listenForLife();
    socket.addEventListener("message", (event) => {
      if (socket !== this.#socket) return;
      this.#pause = FIRST_PAUSE;
      this.#listenForLife();
      this.#on.status("live");
      const data = JSON.parse(event.data);
      if (!data.beat) this.#on.message(data);
    });
    socket.addEventListener("close", (event) => { if (socket === this.#socket) this.#lost(event.code); });
  }

  #lost(code) {
    clearTimeout(this.#watch);
    this.#socket = null;
    if (REFUSED.has(code)) return this.#on.status("refused", code);
    this.#on.status("reconnecting");
    // Jitter: after a restart of the portal not all pages should knock at the same moment.
    this.#retry = setTimeout(() => this.#connect(), this.#pause * (0.5 + Math.random()));
    this.#pause = Math.min(this.#pause * 2, LONGEST_PAUSE);
  }

  #reconnectNow() {
    if (this.#socket || !this.#retry) return;
    clearTimeout(this.#retry);
    this.#pause = FIRST_PAUSE;
    this.#connect();
  }

  #listenForLife() {
    clearTimeout(this.#watch);
    this.#watch = setTimeout(() => {
      const dead = this.#socket;
      this.#lost(0);
      dead?.close();
    }, SILENCE);
  }
}
