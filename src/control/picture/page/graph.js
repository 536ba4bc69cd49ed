// The graph: where everything stands, and drawing it.
//
// Nodes and app servers are few: forces among all pairs of them (springs along links, repulsion by the room each needs) find their
// places. Clients are many: each has a seat in the spiral around its node and a spring that pulls it there, so a step costs the same for
// every client and comes to rest. What does not move is drawn once (`base`); lights run above it (`lights`).

const GOLDEN = Math.PI * (3 - Math.sqrt(5));
/** Room of one client, and of its node in the middle of them, in world units. */
const SEAT = 4.9;
const HUB = 46;
const NODE = 20;
const APP = 17;
/** How long a message's light takes along an edge. */
const LIGHT_MS = 800;
const ANSWER_MS = 160;
const LINK_LIGHT_MS = 1300;
const TAU = Math.PI * 2;

const short = (number) => (number === null ? "–" : number < 9.95 ? number.toFixed(1).replace(/\.0$/, "") : Math.round(number).toLocaleString("en"));

/** Where a seat is, seen from the node. Seats are numbered from the inside. */
function seat(number) {
  const radius = Math.sqrt(HUB * HUB + SEAT * SEAT * 3.2 * number);
  return [radius * Math.cos(number * GOLDEN), radius * Math.sin(number * GOLDEN)];
}

export class Graph {
  /** For whoever measures: frames, and milliseconds of script spent on steps and on drawing, since `times` was last replaced. */
  times = { frames: 0, steps: 0, draw: 0, worst: 0 };

  #base;
  #lights;
  #bodies = new Map();
  #links = [];
  #clients = new Map();
  #heat = 0;
  #moving = false;
  #stale = true;
  #litUntil = 0;
  #view = { x: 0, y: 0, scale: 1 };
  #fits = true;
  /** The scale that shows everything. */
  #fitScale = 1;
  /** What stands over the right side of it, in pixels. */
  #inset = 0;
  #frame = 0;
  #size = [1, 1];
  #pixels = 1;
  #colours = {};
  #selected = null;
  #matches = null;
  #calm = matchMedia("(prefers-reduced-motion: reduce)");

  constructor(base, lights) {
    this.#base = base.getContext("2d");
    this.#lights = lights.getContext("2d");
    for (const query of ["(prefers-color-scheme: dark)", "(prefers-contrast: more)"]) {
      matchMedia(query).addEventListener("change", () => this.#readColours());
    }
    this.#readColours();
    new ResizeObserver(([entry]) => this.#resize(entry.contentRect)).observe(lights);
  }

  get clients() {
    return this.#clients;
  }

  /** Takes over what `Traffic.next` made of a picture. */
  update(shown) {
    const now = performance.now();
    this.#updateBodies(shown);
    const here = new Set();
    for (const node of shown.nodes) {
      const body = this.#bodies.get(node.key);
      for (const { id, in: from, out: to } of node.sample) {
        here.add(id);
        let client = this.#clients.get(id);
        if (!client) {
          client = { id, body, x: 0, y: 0, dx: 0, dy: 0, seat: -1, light: null, next: null, phase: phase(id) };
          this.#clients.set(id, client);
          this.#sit(client);
          // It comes out of its node.
          const [x, y] = seat(client.seat);
          client.x = x * 0.35;
          client.y = y * 0.35;
        }
        // What is on its way arrives before the next sets out: a light is shorter than the time between two pictures.
        if (node.fresh && (from || to)) {
          client.next = { in: from > 0, out: to > 0, at: now + client.phase * 1000 };
          this.#litUntil = now + 2200;
        }
      }
    }
    for (const [id, client] of this.#clients) {
      if (!here.has(id)) this.#leave(client);
    }
    for (const body of this.#bodies.values()) this.#close(body);
    for (const link of this.#links) if (link.in || link.out) this.#litUntil = now + 2200;
    if (this.#selected && !this.#clients.has(this.#selected) && !this.#bodies.has(this.#selected)) this.#selected = null;
    this.#stale = true;
    if (this.#calm.matches) this.#settle();
    this.#wake();
  }

  #updateBodies(shown) {
    const old = this.#bodies;
    this.#bodies = new Map();
    const wide = this.#size[0] >= this.#size[1];
    const place = (key, kind, at, of) => {
      const before = old.get(key);
      const angle = ((at + 0.5) / of) * TAU;
      const far = kind === "node" ? 260 + 30 * of : 20 + 12 * of;
      const fresh = () => ({
        key, kind, dx: 0, dy: 0, seats: [], free: [],
        x: (wide ? -1 : 0.35) * far * Math.cos(angle),
        y: (wide ? 0.35 : 1) * far * Math.cos(angle + (of > 2 ? 1 : 0)) + far * 0.2 * Math.sin(angle),
      });
      const body = before ?? fresh();
      this.#bodies.set(key, body);
      if (!before) this.#heat = 1;
      return body;
    };
    const isNarrow = this.#size[0] < 600;
    shown.nodes.forEach((node, at) => {
      const body = place(node.key, "node", at, shown.nodes.length);
      const clients = `${node.clients.toLocaleString("en")} clients`;
      body.trouble = Boolean(node.trouble);
      body.lines = [node.name, node.trouble ? "unreachable" : isNarrow ? clients : `${clients} · ↑ ${short(node.in)}/s · ↓ ${short(node.out)}/s`];
    });
    shown.apps.forEach((app, at) => {
      const body = place(app.url, "app", at, shown.apps.length);
      body.down = app.up === 0;
      body.observer = app.kind === "observer";
      const lanes = `${app.up} of ${app.lanes} lanes up`;
      body.lines = isNarrow ? [app.upstream, lanes] : [app.upstream, app.url.replace(/^\w+:\/\//, ""), lanes];
    });
    for (const [key, body] of old) {
      if (!this.#bodies.has(key)) {
        this.#heat = Math.max(this.#heat, 0.5);
        for (const client of body.seats) if (client) this.#clients.delete(client.id);
      }
    }
    const links = new Map(this.#links.map((link) => [link.key, link]));
    this.#links = shown.nodes.flatMap((node) =>
      node.links.map((link) => {
        const key = `${node.key} ${link.url}`;
        const states = ["up", "connecting", "waiting"].map((state) => link.lanes.filter((lane) => lane.state === state).length);
        return { ...links.get(key), key, from: this.#bodies.get(node.key), to: this.#bodies.get(link.url), states, in: link.in ?? 0, out: link.out ?? 0 };
      }),
    );
  }

  #sit(client) {
    const { body } = client;
    const free = body.free.pop();
    client.seat = free ?? body.seats.length;
    body.seats[client.seat] = client;
    this.#moving = true;
  }

  #leave(client) {
    const { body } = client;
    this.#clients.delete(client.id);
    if (body.seats[client.seat] === client) {
      body.seats[client.seat] = null;
      body.free.push(client.seat);
    }
  }

  /** Those furthest out move into the seats that are free, and the body's room becomes that of its clients. */
  #close(body) {
    const { seats, free } = body;
    while (seats.length && !seats.at(-1)) seats.pop();
    free.sort((a, b) => b - a);
    while (free.length && free[0] >= seats.length) free.shift();
    while (free.length) {
      const client = seats.pop();
      client.seat = free.pop();
      seats[client.seat] = client;
      this.#moving = true;
      while (seats.length && !seats.at(-1)) seats.pop();
      while (free.length && free[0] >= seats.length) free.shift();
    }
    const room = body.kind === "app" ? APP + 26 : Math.max(HUB, Math.hypot(...seat(seats.length))) + 10;
    if (Math.abs(room - (body.room ?? 0)) > 4) this.#heat = Math.max(this.#heat, body.room ? 0.25 : 1);
    body.room = room;
  }

  /** One step of nodes and app servers. Gravity is weaker along the longer side of the picture, so that its room is used. */
  #stepBodies() {
    const bodies = [...this.#bodies.values()];
    const heat = this.#heat;
    const [width, height] = this.#size;
    const aspect = Math.min(3, Math.max(1 / 3, width / height)) ** 2;
    // Labels have the same size at every scale: what they need between two bodies grows as the picture shrinks.
    const labels = 46 / Math.min(1.5, this.#fitScale);
    for (const { from, to } of this.#links) {
      const dx = to.x - from.x;
      const dy = to.y - from.y;
      const distance = Math.hypot(dx, dy) || 1;
      const pull = ((distance - from.room - 40 - labels) / distance) * 0.06 * heat;
      from.dx += dx * pull;
      from.dy += dy * pull;
      to.dx -= dx * pull;
      to.dy -= dy * pull;
    }
    bodies.forEach((a, at) => {
      for (let other = at + 1; other < bodies.length; other += 1) {
        const b = bodies[other];
        let dx = b.x - a.x;
        let dy = b.y - a.y;
        if (!dx && !dy) [dx, dy] = [at + 1, other];
        const distance = Math.hypot(dx, dy);
        // Labels stand below: beside each other two bodies need less room than above each other.
        const own = a.kind === "app" && b.kind === "app" ? 1.6 : 0.5;
        const room = a.room + b.room + 14 + labels * (own + Math.abs(dy) / distance);
        const push = ((Math.max(0, room - distance) / distance) * 0.4 + 250 / (distance * distance)) * Math.min(1, heat * 4);
        a.dx -= dx * push * 0.5;
        a.dy -= dy * push * 0.5;
        b.dx += dx * push * 0.5;
        b.dy += dy * push * 0.5;
      }
      a.dx -= (a.x * 0.014 * heat) / aspect;
      a.dy -= a.y * 0.014 * heat * aspect;
    });
    for (const body of bodies) {
      body.dx *= 0.62;
      body.dy *= 0.62;
      body.x += body.dx;
      body.y += body.dy;
    }
    this.#heat = heat < 0.004 ? 0 : heat * 0.978;
  }

  /** One step of the clients; all of them rest when none is off its seat. */
  #stepClients() {
    let moving = false;
    for (const body of this.#bodies.values()) {
      const { seats } = body;
      for (let number = 0; number < seats.length; number += 1) {
        const client = seats[number];
        if (!client) continue;
        const [x, y] = seat(number);
        const offX = x - client.x;
        const offY = y - client.y;
        client.dx = (client.dx + offX * 0.05) * 0.72;
        client.dy = (client.dy + offY * 0.05) * 0.72;
        if (Math.abs(offX) + Math.abs(offY) + Math.abs(client.dx) + Math.abs(client.dy) < 0.1) {
          client.x = x;
          client.y = y;
          client.dx = client.dy = 0;
        } else {
          client.x += client.dx;
          client.y += client.dy;
          moving = true;
        }
      }
    }
    this.#moving = moving;
  }

  /** All steps at once, for who wants no motion. */
  #settle() {
    // The scale that shows all and what labels need at it depend on each other: twice is near enough.
    for (let round = 0; round < 2; round += 1) {
      while (this.#heat > 0) this.#stepBodies();
      if (this.#fits) this.#fit(1);
      this.#heat = round === 0 ? 0.3 : 0;
    }
    for (const client of this.#clients.values()) [client.x, client.y] = seat(client.seat);
    this.#moving = false;
  }

  #wake() {
    this.#frame ||= requestAnimationFrame((now) => this.#draw(now));
  }

  #draw(now) {
    this.#frame = 0;
    const begun = performance.now();
    let changes = this.#stale;
    if (this.#heat > 0) {
      this.#stepBodies();
      changes = true;
    }
    if (this.#moving) {
      this.#stepClients();
      changes = true;
    }
    const stepped = performance.now();
    if (this.#fits && this.#fit(0.14)) changes = true;
    if (changes) {
      this.#drawBase();
      this.#stale = false;
    }
    const lit = !this.#calm.matches && now < this.#litUntil;
    this.#drawLights(now, lit);
    const ended = performance.now();
    this.times.frames += 1;
    this.times.steps += stepped - begun;
    this.times.draw += ended - stepped;
    this.times.worst = Math.max(this.times.worst, ended - begun);
    if (changes || lit) this.#wake();
  }

  /** Comes nearer to showing everything. False once it does. */
  #fit(share) {
    let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
    for (const { x, y, room, kind } of this.#bodies.values()) {
      const around = kind === "app" ? APP * 2 : room;
      left = Math.min(left, x - around);
      right = Math.max(right, x + around);
      top = Math.min(top, y - around);
      bottom = Math.max(bottom, y + around);
    }
    if (left > right) return false;
    const [width, height] = this.#size;
    // Labels need room below, above stands how many are shown, and at the bottom the legend.
    const [above, below] = [34, 88];
    const wide = width - 40 - this.#inset;
    const scale = Math.max(0.05, Math.min(1.7, wide / (right - left), (height - above - below) / (bottom - top)));
    this.#fitScale = scale;
    const wanted = { x: (left + right) / 2 + this.#inset / 2 / scale, y: (top + bottom) / 2 + (below - above) / 2 / scale, scale };
    const view = this.#view;
    const off = Math.abs(wanted.x - view.x) + Math.abs(wanted.y - view.y) + Math.abs(wanted.scale / view.scale - 1) * 200;
    if (off < 0.3) return false;
    const near = off > 4000 ? 1 : share;
    for (const name of ["x", "y", "scale"]) view[name] += (wanted[name] - view[name]) * near;
    return true;
  }

  #at({ x, y }) {
    const { scale } = this.#view;
    return [(x - this.#view.x) * scale + this.#size[0] / 2, (y - this.#view.y) * scale + this.#size[1] / 2];
  }

  #bodyRadius(body) {
    return Math.max(body.kind === "node" ? 11 : 8, (body.kind === "node" ? NODE : APP) * this.#view.scale);
  }

  #dotRadius() {
    return Math.min(6, Math.max(1.35, 3.3 * this.#view.scale));
  }

  #drawBase() {
    const context = this.#base;
    const colours = this.#colours;
    const [width, height] = this.#size;
    const { scale } = this.#view;
    context.setTransform(this.#pixels, 0, 0, this.#pixels, 0, 0);
    context.clearRect(0, 0, width, height);

    context.beginPath();
    for (const client of this.#clients.values()) {
      const [x, y] = this.#at(client.body);
      context.moveTo(x, y);
      context.lineTo(x + client.x * scale, y + client.y * scale);
    }
    context.strokeStyle = colours.edge;
    context.globalAlpha = 0.16;
    context.lineWidth = 0.7;
    context.stroke();
    context.globalAlpha = 1;

    const radius = this.#dotRadius();
    this.#dots(this.#clients.values(), radius, colours.client);
    if (this.#matches) this.#dots(this.#matches, radius + 1.5, colours.accent);
    for (const link of this.#links) this.#drawLink(link);
    for (const body of this.#bodies.values()) this.#drawBody(body);
    const selected = this.#clients.get(this.#selected);
    if (selected) {
      const [x, y] = this.#at(selected.body);
      context.beginPath();
      context.arc(x + selected.x * scale, y + selected.y * scale, radius + 4, 0, TAU);
      context.strokeStyle = colours.ink;
      context.lineWidth = 2;
      context.stroke();
    }
  }

  #dots(clients, radius, colour) {
    const context = this.#base;
    const { scale } = this.#view;
    context.beginPath();
    for (const client of clients) {
      const [bodyX, bodyY] = this.#at(client.body);
      const x = bodyX + client.x * scale;
      const y = bodyY + client.y * scale;
      context.moveTo(x + radius, y);
      context.arc(x, y, radius, 0, TAU);
    }
    context.fillStyle = colour;
    context.fill();
  }

  /** Lanes of one link as strands beside each other, as many as can be told apart; what is down is dashed. */
  #strands(link) {
    const [up, connecting, waiting] = link.states;
    const all = up + connecting + waiting;
    const count = Math.min(this.#links.length > 12 ? 1 : this.#links.length > 4 ? 3 : 7, all);
    const [fromX, fromY] = this.#at(link.from);
    const [toX, toY] = this.#at(link.to);
    const length = Math.hypot(toX - fromX, toY - fromY) || 1;
    const [sideX, sideY] = [-(toY - fromY) / length, (toX - fromX) / length];
    return Array.from({ length: count }, (_, at) => {
      const bend = (at - (count - 1) / 2) * Math.min(9, 4 + 5 * this.#view.scale) * 2;
      // The last strand is the worst lane: where not all are drawn, one that is down must not be missed.
      const lane = at === count - 1 ? all - 1 : Math.floor((at * all) / count);
      const state = lane < up ? "up" : lane < up + connecting ? "connecting" : "waiting";
      return { state, fromX, fromY, toX, toY, midX: (fromX + toX) / 2 + sideX * bend, midY: (fromY + toY) / 2 + sideY * bend };
    });
  }

  #drawLink(link) {
    const context = this.#base;
    const colours = this.#colours;
    for (const strand of this.#strands(link)) {
      context.beginPath();
      context.moveTo(strand.fromX, strand.fromY);
      context.quadraticCurveTo(strand.midX, strand.midY, strand.toX, strand.toY);
      context.setLineDash(strand.state === "up" ? [] : [5, 5]);
      context.strokeStyle = { up: colours.app, connecting: colours.wait, waiting: colours.bad }[strand.state];
      context.globalAlpha = strand.state === "up" ? 0.42 : 0.9;
      context.lineWidth = 1.3;
      context.stroke();
    }
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  #drawBody(body) {
    const context = this.#base;
    const colours = this.#colours;
    const [x, y] = this.#at(body);
    const radius = this.#bodyRadius(body);
    const isSelected = body.key === this.#selected;
    context.beginPath();
    if (body.kind === "node") {
      context.arc(x, y, radius + 4, 0, TAU);
      context.fillStyle = body.trouble ? colours.card : colours.rim;
      context.fill();
      context.beginPath();
      context.arc(x, y, radius, 0, TAU);
    } else {
      context.roundRect(x - radius - 3, y - radius - 3, radius * 2 + 6, radius * 2 + 6, radius * 0.45);
      context.fillStyle = colours.card;
      context.fill();
      context.beginPath();
      context.roundRect(x - radius, y - radius, radius * 2, radius * 2, radius * 0.35);
    }
    const isDown = body.trouble || body.down;
    context.fillStyle = isDown ? colours.card : body.kind === "node" ? colours.node : colours.app;
    context.fill();
    if (isDown || isSelected) {
      context.strokeStyle = isDown ? colours.bad : colours.ink;
      context.lineWidth = 2.5;
      context.setLineDash(isDown ? [4, 4] : []);
      context.stroke();
      context.setLineDash([]);
    }
    if (body.kind === "app" && !isDown) {
      // A server's drawers; an Observer has an eye.
      context.fillStyle = colours.card;
      if (body.observer) {
        context.beginPath();
        context.arc(x, y, radius * 0.38, 0, TAU);
        context.fill();
      } else {
        for (const row of [-0.45, 0, 0.45]) context.fillRect(x - radius * 0.55, y + radius * row - 1, radius * 1.1, Math.max(1.5, radius * 0.13));
      }
    }
  }

  /** Above everything, or the lights would run over it. */
  #label(body) {
    const context = this.#lights;
    const colours = this.#colours;
    const [x, y] = this.#at(body);
    const cloud = body.seats.length ? (body.room - 6) * this.#view.scale : 0;
    let below = y + Math.max(this.#bodyRadius(body) + 7, cloud);
    context.textAlign = "center";
    context.textBaseline = "top";
    context.lineJoin = "round";
    body.lines.forEach((line, at) => {
      context.font = `${at === 0 ? "650 14px" : "12.5px"} system-ui, -apple-system, "Segoe UI", Roboto, sans-serif`;
      context.strokeStyle = colours.card;
      context.lineWidth = 5;
      context.strokeText(line, x, below);
      context.fillStyle = at === 0 ? colours.ink : body.trouble || (body.down && at === 2) ? colours.bad : colours.soft;
      context.fillText(line, x, below);
      below += at === 0 ? 18 : 16;
    });
  }

  /** Lights of the last second's messages, on their way. Without motion: the edges that had some. */
  #drawLights(now, lit) {
    const context = this.#lights;
    const [width, height] = this.#size;
    context.setTransform(this.#pixels, 0, 0, this.#pixels, 0, 0);
    context.clearRect(0, 0, width, height);
    const still = this.#calm.matches;
    if (lit || still) this.#drawTraffic(now, still);
    for (const body of this.#bodies.values()) this.#label(body);
  }

  #drawTraffic(now, still) {
    const context = this.#lights;
    const colours = this.#colours;
    const { scale } = this.#view;
    const edges = { in: new Path2D(), out: new Path2D() };
    const points = { in: new Path2D(), out: new Path2D() };
    const size = Math.min(4, Math.max(2, 3.2 * scale));
    const dot = this.#dotRadius();
    for (const client of this.#clients.values()) {
      if (client.next && (still || client.next.at <= now)) {
        client.light = client.next;
        client.next = null;
      }
      const { light } = client;
      if (!light) continue;
      const age = now - light.at;
      if (age > LIGHT_MS + ANSWER_MS && !still) {
        client.light = null;
        continue;
      }
      const [bodyX, bodyY] = this.#at(client.body);
      const x = bodyX + client.x * scale;
      const y = bodyY + client.y * scale;
      for (const way of ["in", "out"]) {
        if (!light[way]) continue;
        // What goes out follows what came in.
        const part = still ? 0.5 : (age - (way === "out" ? ANSWER_MS : 0)) / LIGHT_MS;
        if (part <= 0 || part >= 1) continue;
        edges[way].moveTo(x, y);
        edges[way].lineTo(bodyX, bodyY);
        if (still || part < 0.5 === (way === "in")) {
          points[way].moveTo(x + dot, y);
          points[way].arc(x, y, dot, 0, TAU);
        }
        if (still) continue;
        const eased = part * part * (3 - 2 * part);
        const along = way === "in" ? eased : 1 - eased;
        points[way].rect(x + (bodyX - x) * along - size / 2, y + (bodyY - y) * along - size / 2, size, size);
      }
    }
    context.lineWidth = 0.9;
    // Who is answered has mostly asked: without motion, where both are at the same place, the asking is what shows.
    for (const way of still ? ["out", "in"] : ["in", "out"]) {
      context.globalAlpha = 0.38;
      context.strokeStyle = context.fillStyle = colours[way];
      context.stroke(edges[way]);
      context.globalAlpha = 1;
      context.fill(points[way]);
    }
    for (const link of this.#links) this.#drawLinkLights(link, now, still);
    // Nodes and app servers stand above what passes.
    for (const body of this.#bodies.values()) this.#cover(body);
  }

  #drawLinkLights(link, now, still) {
    if (!link.in && !link.out) return;
    const context = this.#lights;
    const strands = this.#strands(link).filter((strand) => strand.state === "up");
    if (!strands.length) return;
    for (const way of ["in", "out"]) {
      const rate = link[way];
      if (!rate) continue;
      context.strokeStyle = context.fillStyle = this.#colours[way];
      context.globalAlpha = 0.35;
      context.lineWidth = 1.6;
      for (const strand of strands) {
        context.beginPath();
        context.moveTo(strand.fromX, strand.fromY);
        context.quadraticCurveTo(strand.midX, strand.midY, strand.toX, strand.toY);
        context.stroke();
      }
      context.globalAlpha = 1;
      if (still) continue;
      // More light with more messages, but a thousand times as many are not a thousand times as bright.
      const count = Math.min(30, Math.ceil(Math.log2(1 + rate) * 2));
      context.beginPath();
      for (let number = 0; number < count; number += 1) {
        const strand = strands[number % strands.length];
        const part = (now / LINK_LIGHT_MS + number / count + (way === "out" ? 0.5 / count : 0)) % 1;
        const along = way === "in" ? part : 1 - part;
        const rest = 1 - along;
        const x = rest * rest * strand.fromX + 2 * rest * along * strand.midX + along * along * strand.toX;
        const y = rest * rest * strand.fromY + 2 * rest * along * strand.midY + along * along * strand.toY;
        context.moveTo(x + 2.4, y);
        context.arc(x, y, 2.4, 0, TAU);
      }
      context.fill();
    }
  }

  /** Cuts a body's own place out of the lights. */
  #cover(body) {
    const context = this.#lights;
    const [x, y] = this.#at(body);
    const radius = this.#bodyRadius(body);
    context.globalCompositeOperation = "destination-out";
    context.beginPath();
    if (body.kind === "node") context.arc(x, y, radius + 1, 0, TAU);
    else context.roundRect(x - radius, y - radius, radius * 2, radius * 2, radius * 0.35);
    context.fill();
    context.globalCompositeOperation = "source-over";
  }

  #readColours() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    for (const name of ["ink", "soft", "card", "node", "app", "client", "edge", "in", "out", "bad", "wait", "accent"]) this.#colours[name] = colour(name);
    this.#colours.rim = colour("node-rim");
    this.redraw();
  }

  #resize({ width, height }) {
    this.#size = [Math.max(1, width), Math.max(1, height)];
    // More than two pixels to one cost time and show nothing.
    this.#pixels = Math.min(2, devicePixelRatio || 1);
    for (const { canvas } of [this.#base, this.#lights]) {
      canvas.width = Math.round(width * this.#pixels);
      canvas.height = Math.round(height * this.#pixels);
    }
    this.#heat = Math.max(this.#heat, 0.3);
    if (this.#calm.matches) this.#settle();
    this.redraw();
  }

  redraw() {
    this.#stale = true;
    this.#wake();
  }

  // ---- what a visitor does

  move(byX, byY) {
    this.#fits = false;
    this.#view.x -= byX / this.#view.scale;
    this.#view.y -= byY / this.#view.scale;
    this.redraw();
  }

  /** Zooms so that the point (in pixels of the stage; its middle by default) stays where it is. */
  zoom(factor, x = this.#size[0] / 2, y = this.#size[1] / 2) {
    this.#fits = false;
    const view = this.#view;
    const scale = Math.min(8, Math.max(0.05, view.scale * factor));
    const [offX, offY] = [x - this.#size[0] / 2, y - this.#size[1] / 2];
    view.x += offX / view.scale - offX / scale;
    view.y += offY / view.scale - offY / scale;
    view.scale = scale;
    this.redraw();
  }

  /** Leaves so many pixels free at the right. */
  leave(pixels) {
    this.#inset = pixels;
    this.redraw();
  }

  showAll() {
    this.#fits = true;
    this.redraw();
  }

  /** What is at a point: `["client", id]`, `["node", key]`, `["app", url]` or null. `reach` is a finger's or a pointer's. */
  pick(x, y, reach) {
    for (const body of this.#bodies.values()) {
      const [bodyX, bodyY] = this.#at(body);
      if (Math.hypot(x - bodyX, y - bodyY) < this.#bodyRadius(body) + 4) return [body.kind, body.key];
    }
    let best = null;
    let nearest = reach;
    for (const client of this.#clients.values()) {
      const [clientX, clientY] = this.where(client.id);
      const distance = Math.hypot(x - clientX, y - clientY);
      if (distance < nearest) [best, nearest] = [client, distance];
    }
    return best && ["client", best.id];
  }

  /** Where a client is on the stage, in pixels. */
  where(id) {
    const client = this.#clients.get(id);
    if (!client) return null;
    const [x, y] = this.#at(client.body);
    return [x + client.x * this.#view.scale, y + client.y * this.#view.scale];
  }

  select(key) {
    this.#selected = key;
    this.redraw();
  }

  /** Highlights clients whose id begins so; returns them. */
  match(start) {
    this.#matches = start ? [...this.#clients.values()].filter((client) => client.id.startsWith(start)) : null;
    this.redraw();
    return this.#matches ?? [];
  }

  isAtRest() {
    return this.#heat === 0 && !this.#moving;
  }
}

/** When in a second a client's light sets out, so that not all do at once: 0 to 1, the same each time. */
function phase(id) {
  let hash = 2166136261;
  for (let at = 0; at < id.length; at += 1) hash = Math.imul(hash ^ id.charCodeAt(at), 16777619);
  return (hash >>> 8) / (1 << 24);
}
