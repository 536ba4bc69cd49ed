// The npm `dotnetify` client, unmodified, in Node. It wants to be in a browser: it needs `window`, and its SignalR library
// `self`, and then the browser's own `fetch`, `WebSocket` and `EventSource`. Nothing else of a browser is there.

import { createRequire } from "node:module";
import EventSource from "eventsource";
import { WebSocket } from "ws";
import { until } from "./processes.mjs";
import { transportOf } from "./signalr.mjs";

const require = createRequire(import.meta.url);
globalThis.window = globalThis;
globalThis.self = globalThis;
globalThis.WebSocket ??= WebSocket;
globalThis.EventSource ??= EventSource;

/** A browser tab: the package keeps its view models in one global object, so each client loads its own copy of it. */
export class Tab {
  constructor(url, { transport, skipNegotiation, protocol } = {}) {
    const file = require.resolve("dotnetify/dist/dotnetify.js");
    delete require.cache[file];
    this.dotnetify = require(file).default;
    this.states = [];
    this.dotnetify.connectionStateHandler = (state, exception) => {
      this.states.push(exception ? `${state}: ${exception.message}` : state);
    };
    if (transport) this.dotnetify.hubOptions.transport = transport;
    if (skipNegotiation) this.dotnetify.hubOptions.skipNegotiation = true;
    if (protocol) this.dotnetify.hubOptions.connectionBuilder = (builder) => builder.withHubProtocol(protocol);
    // The signalr library logs every reconnect; the tests look at states instead.
    this.dotnetify.hubOptions.logger = { log() {} };
    this.hub = this.dotnetify.createHub(url);
    this.dotnetify.connectHandler = () => ({ hub: this.hub });
    // The package waits 2, 5, 10 s; a test need not.
    this.hub.reconnectDelay = [0.2];
  }

  /** Connects a view model as a component would. */
  connect(vmId, { vmArg, headers, state = {} } = {}) {
    const component = { props: {}, state, exceptions: [], received: [] };
    component.setState = (change) => {
      component.received.push(change);
      component.state = { ...component.state, ...change };
    };
    component.vm = this.dotnetify.react.connect(vmId, component, {
      vmArg,
      headers,
      exceptionHandler: (exception) => component.exceptions.push(exception),
    });
    component.dispatch = (change) => component.vm.$dispatch(change);
    component.destroy = () => component.vm.$destroy();
    component.has = (what, test) =>
      until(what, () => test(component.state, component)).catch((error) => {
        throw new Error(`${error.message}; the state is ${JSON.stringify(component.state)}`, { cause: error });
      });
    return component;
  }

  /** The name of the transport it came to use. */
  get transport() {
    return transportOf(this.hub._connection);
  }

  /** Closes the tab: no reconnect, no goodbye of the view models. */
  async close() {
    this.hub.reconnectRetry = -1;
    this.hub.reconnect = () => {};
    await this.hub._connection?.stop();
  }
}
