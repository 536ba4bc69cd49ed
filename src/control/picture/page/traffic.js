// From two pictures of the node, a second apart, to what is shown: rates, and which clients have had traffic.

/** Messages a second between two counters `ms` apart; null where that cannot be said. */
const rate = (now, before, ms) => (before === undefined || ms <= 0 || now < before ? null : ((now - before) * 1000) / ms);
const add = (a, b) => (b === null ? a : (a ?? 0) + b);

export class Traffic {
  #before = new Map();

  /** `picture` is the answer of api/picture. */
  next(picture) {
    const before = this.#before;
    this.#before = new Map();
    const nodes = picture.nodes.map((node) => this.#node(node, before.get(node.id)));
    const apps = new Map();
    for (const node of nodes) {
      for (const link of node.links) {
        const app = apps.get(link.url) ?? { url: link.url, upstream: link.upstream, kind: link.kind, lanes: 0, up: 0, clients: 0, in: null, out: null };
        app.lanes += link.lanes.length;
        app.up += link.up;
        app.clients += link.clients;
        app.in = add(app.in, link.in);
        app.out = add(app.out, link.out);
        apps.set(link.url, app);
      }
    }
    return {
      nodes,
      apps: [...apps.values()],
      clients: picture.clients,
      shown: nodes.reduce((sum, node) => sum + node.sample.length, 0),
      in: nodes.reduce((sum, node) => add(sum, node.in), null),
      out: nodes.reduce((sum, node) => add(sum, node.out), null),
    };
  }

  #node(node, last) {
    // The node answers several who look at once with the same picture: nothing new in it.
    if (last && last.node.at_ms === node.at_ms && !node.trouble) {
      this.#before.set(node.id, last);
      return { ...last.shown, fresh: false };
    }
    const ms = last ? node.at_ms - last.node.at_ms : 0;
    const lanes = node.lanes.map((lane, at) => {
      const was = last?.node.lanes[at];
      return { ...lane, in: rate(lane.sent, was?.sent, ms), out: rate(lane.received, was?.received, ms) };
    });
    const links = node.app_servers.map((app, index) => {
      const own = lanes.filter((lane) => lane.app_server === index);
      return {
        ...app,
        lanes: own,
        up: own.filter((lane) => lane.state === "up").length,
        clients: own.reduce((sum, lane) => sum + lane.clients, 0),
        in: own.reduce((sum, lane) => add(sum, lane.in), null),
        out: own.reduce((sum, lane) => add(sum, lane.out), null),
      };
    });
    const counters = new Map();
    const sample = node.sample.map(([id, received, sent]) => {
      counters.set(id, [received, sent]);
      const was = last?.counters.get(id);
      // Both wrap at 2^32.
      return { id, in: was ? (received - was[0]) >>> 0 : 0, out: was ? (sent - was[1]) >>> 0 : 0 };
    });
    const shown = { ...node, key: node.admin, lanes, links, sample, in: rate(node.received, last?.node.received, ms), out: rate(node.sent, last?.node.sent, ms), fresh: true };
    if (!node.trouble) this.#before.set(node.id, { node, counters, shown });
    return shown;
  }
}
