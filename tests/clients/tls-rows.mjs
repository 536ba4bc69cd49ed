// The rows of the npm client 10 over https and wss, for `tls.test.mjs`: a process of its own, because Node takes NODE_EXTRA_CA_CERTS
// only at its start. Arguments: the node's URL and the app server's.

import { ROWS, tableRow, walk } from "./lib/matrix.mjs";
import { App } from "./lib/processes.mjs";

const [url, appUrl] = process.argv.slice(2);
for (const row of ROWS.filter(({ folder }) => folder === "signalr10")) {
  const milliseconds = await walk(row, { app: App.at(appUrl), url });
  console.log(tableRow({ ...row, transport: `${row.transport} over TLS` }, milliseconds));
}
