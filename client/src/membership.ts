import { SocketError } from "./calls.js";
import type { Emitter } from "./emitter.js";
import type { Acks } from "./events.js";
import { Gaps } from "./gaps.js";
import type { Settings } from "./options.js";
import type { Outbox } from "./outbox.js";
import type { SocketEvents } from "./reports.js";
import { THREAD } from "./rooms.js";
import type { Timers } from "./timers.js";

/** A room that the page wants, or that the server joins. */
interface Room {
  /** Who wants it; none if only the server joins it. */
  users: Set<object>;
  /** Of the last publication that the client received; undefined after a gap, until the next publication. */
  offset?: string | undefined;
  /** Whether the client is in it, or was when the connection was lost; false: it was, before everything was discarded. */
  isIn?: boolean;
}

/** Errors after which the client does not ask for a room again. */
const FINAL = ["forbidden", "limit_exceeded", "invalid_payload"];

/** Which rooms the client is in: enters them, recovers them after a reconnect, and reports what it may have missed. */
export class Membership {
  readonly #rooms = new Map<string, Room>();
  /** Kinds of rooms that the server joins automatically; of the other kinds only wanted rooms are kept. */
  readonly #automatic = new Set(["user", "presence"]);
  readonly #gaps: Gaps;
  /** Rooms whose publications are ignored until their `resume`, from this offset, is answered. */
  #resumed = new Map<string, string>();
  #isConnected = false;
  readonly #settings: Settings;
  readonly #outbox: Outbox;
  /** Those of the connection. */
  readonly #timers: Timers;
  readonly #reports: Emitter<SocketEvents>;

  constructor(settings: Settings, outbox: Outbox, timers: Timers, reports: Emitter<SocketEvents>) {
    this.#settings = settings;
    this.#outbox = outbox;
    this.#timers = timers;
    this.#reports = reports;
    this.#gaps = new Gaps(settings, reports);
  }

  // --- What the page wants ---------------------------------------------------------------------

  /** Enters a room, now or when there is a connection, and returns a function that leaves it. */
  join(name: string): () => void {
    const room = this.#rooms.get(name) ?? { users: new Set() };
    const who = {};
    this.#rooms.set(name, room);
    if (room.users.add(who).size === 1) this.#enter(name, room);
    return () => {
      if (!room.users.delete(who) || room.users.size || this.#rooms.get(name) !== room) return;
      this.#forget(name);
      this.#leave(name);
    };
  }

  /** Whether the client is in the room, or was in it when the connection was lost. */
  isIn(name: string): boolean {
    return !!this.#rooms.get(name)?.isIn;
  }

  // --- The connection --------------------------------------------------------------------------

  /** The last offset received, by room. */
  get offsets(): [room: string, offset: string][] {
    return [...this.#rooms].flatMap(([name, { offset }]) => (offset ? [[name, offset]] : []));
  }

  /** Handles the first frame of a connection: continues where the last one ended, or anew for another user. */
  begin(given: Membership["offsets"], isAnother: boolean): void {
    const rooms = [...this.#rooms];
    const known = new Map(this.offsets);
    this.#isConnected = true;
    for (const [name, offset] of given) {
      this.#automatic.add(kindOf(name));
      if (!known.has(name)) this.#seen(name, offset, "joined anew");
    }
    // Another user's connection waits for a `resume`, too: it was opened for the last one.
    this.#resumed = isAnother ? new Map(given) : known;
    void this.#recover([...this.#resumed]);
    for (const [name, room] of rooms) if (!known.has(name)) this.#enter(name, room);
  }

  /** The connection is lost. */
  end(): void {
    this.#isConnected = false;
    this.#resumed.clear();
  }

  /** Forgets where the client was. It enters the wanted rooms again, and reports a gap in those that it was in. */
  reset(): void {
    this.#gaps.drop();
    for (const room of this.#rooms.values()) {
      room.offset = undefined;
      room.isIn &&= false;
    }
  }

  // --- Frames ----------------------------------------------------------------------------------

  /** Takes note of a publication. Returns false if it is to be ignored, because it is replayed. */
  accepts(name: string, offset: string): boolean {
    const isDue = !this.#resumed.has(name);
    // Not before it was entered: what a room that was left still brings belongs to no position.
    if (isDue && (this.isIn(name) || this.#automatic.has(kindOf(name)))) this.#seen(name, offset);
    return isDue;
  }

  /** The client is live again from here; a room that is still to be resumed waits for that all the same. */
  gap(name: string, reason: string): void {
    const room = this.#rooms.get(name);
    if (room) room.offset = undefined;
    this.#gaps.add(name, reason);
  }

  expelled(room: string, reason: string): void {
    this.#forget(room);
    this.#reports.emit("left", { room, reason });
  }

  // ---------------------------------------------------------------------------------------------

  /** Enters a room that is wanted, if there is a connection. */
  #enter(name: string, room: Room): void {
    const isWanted = (): boolean => !!room.users.size && this.#rooms.get(name) === room;
    const entered = ({ offset }: Acks["join"]): void => {
      if (!isWanted()) return;
      this.#seen(name, room.offset ?? offset, "joined anew");
      this.#reports.emit("joined", { room: name });
    };
    if (!this.#isConnected || !isWanted()) return;
    this.#outbox.ask(...frameOf("join", name), entered).catch((error: SocketError) => {
      if (!isWanted()) return; // it was left, and perhaps joined again
      if (FINAL.includes(error.code)) this.expelled(name, error.code);
      else this.#again(error, () => this.#enter(name, room));
    });
  }

  /** Leaves a room, unless it is wanted again: until the server agrees, its publications arrive. */
  #leave(name: string): void {
    if (!this.#isConnected || this.#rooms.get(name)?.users.size) return;
    this.#outbox.ask(...frameOf("leave", name)).catch((error: SocketError) => {
      if (!FINAL.includes(error.code)) this.#again(error, () => this.#leave(name));
    });
  }

  /**
   * Recovers the missed publications of these rooms. Until the answer arrives their publications are ignored, because they
   * are replayed. Without an answer, or after a temporary error, it asks again: the connection is in none of the rooms yet.
   */
  async #recover(offsets: Membership["offsets"]): Promise<void> {
    const asked = offsets.filter(([name]) => this.#resumed.has(name)); // the others were left in the meantime
    if (asked.length === 0) return;
    try {
      const data = { rooms: Object.fromEntries(asked) };
      await this.#outbox.ask<Acks["resume"]>("resume", data, (answer) => this.#recovered(answer));
      // Those that failed for now.
      if (this.#resumed.size) this.#again({}, () => void this.#recover(asked));
    } catch (error) {
      const half = asked.length >> 1;
      if ((error as SocketError).code === "too_large" && half > 0) {
        void this.#recover(asked.splice(half));
        void this.#recover(asked);
        return;
      }
      this.#outbox.complain(error as SocketError);
      this.#again(error as SocketError, () => void this.#recover(asked));
    }
  }

  #recovered({ rooms }: Acks["resume"]): void {
    for (const [name, found] of Object.entries(Object(rooms) as typeof rooms)) {
      const { error, recovered, offset } = Object(found) as { error?: string; recovered?: boolean; offset?: string };
      if (!this.#resumed.has(name) || (error && !FINAL.includes(error))) continue; // also if a handler has disconnected
      this.#resumed.delete(name);
      if (error) this.expelled(name, error);
      else if (!recovered) this.#seen(name, offset, "not recovered");
    }
  }

  /** Retries after `unavailable`, `timeout` and `rate_limited`, with jitter. */
  #again({ code, retryAfter = 1 }: Partial<SocketError>, action: () => void): void {
    if (code !== "closed") this.#timers.after(retryAfter * 1000 * (1 + this.#settings.random()), action);
  }

  /** The client is in the room, at this offset; `missed` is why it may have missed publications if it was in it before. */
  #seen(name: string, offset: string | undefined, missed?: string): void {
    const room = this.#rooms.get(name) ?? { users: new Set() };
    if (missed && room.isIn !== undefined) this.#gaps.add(name, missed);
    room.offset = offset && String(offset);
    room.isIn = true;
    this.#rooms.set(name, room);
  }

  /** Forgets a room. One that the server joins automatically may have had publications when it does so again. */
  #forget(name: string): void {
    this.#gaps.forget(name);
    this.#resumed.delete(name);
    this.#rooms.delete(name);
    if (this.#automatic.has(kindOf(name))) this.#rooms.set(name, { users: new Set(), isIn: false });
  }
}

function kindOf(name: string): string {
  return name.slice(0, name.indexOf(":"));
}

function frameOf(event: "join" | "leave", room: string): [event: string, data: object] {
  return room.startsWith(THREAD) ? [`${event}:thread`, { thread_id: room.slice(THREAD.length) }] : [event, { room }];
}
