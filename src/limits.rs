//! Every bound of a node, each with its reason. What happens at a bound is a named policy, counted in a metric.
//!
//! Defaults that a configuration may change end in `_DEFAULT`; everything else is fixed.

// ---- What the configuration takes -----------------------------------------------------------------------------------
//
// Ranges rather than free choice: a value outside is more often a wrong unit than a wish.

/// Threads with a ring each. 256 is beyond the cores of any machine a node was meant for, and fits the shard field of an origin id.
pub const SHARDS_MAX: u16 = 256;
/// Lanes of a node to one url. An app server serves a lane's messages one after another, so a pool wants tens of lanes; a thousand is the roof.
pub const POOL_SIZE_DEFAULT: u16 = 5;
pub const POOL_SIZE_MAX: u16 = 1024;
/// Connections of a node when nobody says: what the file descriptors allow, but never a promise the memory cannot keep
/// (100,000 idle clients are about 0.5 GB, kernel included).
pub const CLIENTS_DEFAULT: u32 = 100_000;
pub const CLIENTS_MAX: u32 = 4_000_000;
/// Upstreams of a node: a client remembers which of them each of its view models goes to in 16 bits.
pub const UPSTREAMS_MAX: usize = 16;
/// URLs of one upstream, so that what is given is a list somebody wrote.
pub const UPSTREAM_URLS_MAX: usize = 16;
/// Largest weight of a url: more than a thousandfold difference between two app servers is a mistake.
pub const UPSTREAM_WEIGHT_MAX: u32 = 1000;
/// Longest name of an upstream. It is a label of metrics.
pub const UPSTREAM_NAME_BYTES_MAX: usize = 64;
/// Longest filter; a longer one is no rule that anybody can check by reading.
pub const FILTER_BYTES_MAX: usize = 4 * 1024;
/// Deepest nesting of a filter: parentheses, and operators in a row. Parser and evaluation recurse, and nobody reads deeper ones.
pub const FILTER_DEPTH_MAX: usize = 24;
/// Stack of the thread that parses a filter. The deepest takes less than 4 MB of it where nothing is optimized.
pub const FILTER_PARSER_STACK_BYTES: usize = 32 * 1024 * 1024;
/// Memory of one compiled pattern of `matches`. `\w{500}` is beyond it, an e-mail address or a list of names is not.
pub const FILTER_PATTERN_BYTES_MAX: usize = 1024 * 1024;
/// Values (numbers, texts, lists, members...) in the data of a message that a filter looks into. A grid of 1,000 rows and 20 columns has
/// half of it, and reading that many takes a few milliseconds of the shard.
pub const FILTER_VALUES_MAX: usize = 40_000;
/// Steps that a filter may take over one message, one being a value looked at, or 64 bytes of a text: what keeps a filter that looks through a list for every
/// element of a list from holding up the shard. A step of a loop takes about 130 ns, so this is 13 ms at the most.
pub const FILTER_STEPS_MAX: usize = 100_000;
/// Other nodes in one picture. Each is asked once a second while somebody looks.
pub const PEERS_MAX: usize = 64;
/// Clients that one picture shows; above that it is a sample. What a browser lays out and draws at 60 frames a second.
pub const PICTURE_CLIENTS_MAX: u32 = 2000;
/// Slots of its table that a shard looks at in one turn to show its clients: each is likely a cache miss, so this is below a
/// millisecond ...
pub const LOOK_SLOTS_PER_TURN: u32 = 4096;
/// ... and for one look. A table that was once full and is nearly empty now shows fewer clients than it has.
pub const LOOK_SLOTS_MAX: u32 = 256 * 1024;
/// Looks that wait for their turn at a shard: the control plane has one at a time under way, and gives up after a second.
pub const LOOKS_MAX: usize = 4;
/// View models of one client that are shown by name, and groups on each of its lanes.
pub const DETAIL_NAMES_MAX: usize = 256;
/// How long another node may take to show itself, and a shard to be looked at; a picture is never older than this.
pub const LOOK_MS: u64 = 1000;
/// One look serves everybody who asks within this time, so that many open pages cost no more than one.
pub const LOOK_KEPT_MS: u64 = 500;
/// How long a node that did not answer in time, twice in a row, is left in peace: the picture need not wait for it every second, and what is still
/// under way for it in the system's resolver stays little.
pub const PEER_REST_MS: u64 = 5_000;
/// Longest answer of another node: 1024 lanes and 2000 clients take a quarter of it.
pub const PEER_ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// View models one client may have at a time. A page has tens.
pub const VIEWS_PER_CLIENT_MAX: u32 = 1024;
/// Bytes of their names together, which clients choose: those of 1024 view models with 64 bytes each, or of a few long ones.
pub const VIEW_NAMES_BYTES_MAX: usize = 64 * 1024;
/// Descriptors beside clients and lanes: log, admin connections, resolver, and whatever a library opens.
pub const DESCRIPTORS_SLACK: u32 = 64;
/// Descriptors of one shard: ring, listener, doorbell, timer, and room for a handed-over socket.
pub const DESCRIPTORS_PER_SHARD: u32 = 8;
/// Descriptors of one lane: its socket, and the one that is being dialled to replace it.
pub const DESCRIPTORS_PER_LANE: u32 = 2;
/// How long what is queued for a client may wait for a client that takes nothing: SignalR's clients give up a server from which they have
/// heard nothing whole for 30 s, so whoever waits longer waits for nobody. (Seconds.)
pub const CLIENT_SEND_QUEUE_SECONDS_DEFAULT: u64 = 30;
/// What a client has to take in that time, or everything if less is queued, to count as one that reads: 2000 bytes a second with the
/// default, the worst of telephone lines. A queue at its default bound is gone after five times the time, however slowly it is read, so
/// who takes a byte now and then does not keep one for ever. More than the kernel waits for before it says that there is room again (a
/// third of the send buffer, with the default about 21 KiB), and what fits the 16 bits that an idle client spends on it.
pub const CLIENT_PROGRESS_BYTES: u16 = 60_000;
/// Messages a second that one client may send in the long run, and at once. A person at a page makes tens, a drag that reports
/// every move 60; a page that opens asks for each of its view models. Over it nothing is lost, it is read later.
pub const MESSAGE_RATE_DEFAULT: u32 = 1000;
pub const MESSAGE_BURST_DEFAULT: u32 = 2000;
pub const MESSAGE_RATE_MAX: u32 = 1_000_000;
/// What is over the burst is counted in 16 bits as well, and one POST may carry thousands of small messages.
pub const MESSAGE_BURST_MAX: u32 = 30_000;
/// Connections a second that one shard accepts in the long run, and that many at once. Others wait in the kernel's queue. Each takes
/// some 60 us of the shard until it is a client, and over TLS several times that: a storm leaves most of the core to who is served.
pub const ACCEPT_RATE_DEFAULT: u32 = 2000;
pub const ACCEPT_RATE_MAX: u32 = 1_000_000;
/// Accepts that a shard has under way for one listener, which is what one turn can bring of new connections.
pub const ACCEPTS_AT_ONCE: u16 = 16;
/// How long accepting pauses at least once more have come than `accept_rate`.
pub const ACCEPT_PAUSE_MS: u64 = 5;
/// How long a client's machine may leave unanswered what TCP sends it, probes of a connection that is quiet among it. (Seconds; then
/// the limits, in milliseconds.)
pub const TCP_TIMEOUT_SECONDS_DEFAULT: u64 = 60;
pub const TCP_TIMEOUT_MS_MIN: u64 = 6_000;
pub const TCP_TIMEOUT_MS_MAX: u64 = 60 * 60 * 1000;
/// Probes of a quiet connection in that time.
pub const TCP_PROBES: u32 = 3;
/// Bytes queued for one client before it counts as too slow.
pub const CLIENT_SEND_QUEUE_BYTES_DEFAULT: u32 = 256 * 1024;
/// Below this, one large group message would disconnect healthy clients.
pub const CLIENT_SEND_QUEUE_BYTES_MIN: u32 = 16 * 1024;
pub const CLIENT_SEND_QUEUE_BYTES_MAX: u32 = 64 * 1024 * 1024;
/// SO_SNDBUF of a client socket. Linux clamps to about 4 KiB below and `net.core.wmem_max` above.
pub const CLIENT_SEND_BUFFER_BYTES_DEFAULT: u32 = 32 * 1024;
pub const CLIENT_SEND_BUFFER_BYTES_MIN: u32 = 4 * 1024;
pub const CLIENT_SEND_BUFFER_BYTES_MAX: u32 = 4 * 1024 * 1024;
/// Client messages that wait for a lane that is not up.
pub const UPSTREAM_QUEUE_BYTES_DEFAULT: u32 = 4 * 1024 * 1024;
pub const UPSTREAM_QUEUE_BYTES_MIN: u32 = 64 * 1024;
pub const UPSTREAM_QUEUE_BYTES_MAX: u32 = 1024 * 1024 * 1024;
/// A queue must hold at least one message, and embedding a client's JSON in a JSON lane's string can double it.
pub const UPSTREAM_QUEUE_MESSAGES_MIN: u32 = 2;
/// Shortest wait that can be configured: below it, timeouts would fire on a healthy network. (Milliseconds.)
pub const TIMEOUT_MS_MIN: u64 = 100;
/// Longest time a connection may take to become a client: what waits here holds a slot without giving anything.
pub const SETUP_TIMEOUT_MS_MAX: u64 = 5 * 60 * 1000;
/// Longest client timeout and keep-alive interval.
pub const CLIENT_TIMEOUT_MS_MAX: u64 = 60 * 60 * 1000;
/// ASP.NET's advice: a timeout of at least twice the interval, so that one lost ping disconnects nobody.
pub const CLIENT_TIMEOUT_KEEP_ALIVES_MIN: u32 = 2;
/// Addresses a node listens on: every shard has a socket for each, so that what is given is what is meant, not a list of thousands.
pub const LISTENERS_MAX: usize = 8;
/// Longest path of a Unix socket: `sun_path` has 108 bytes, the last one zero (unix(7)).
pub const UNIX_PATH_BYTES_MAX: usize = 107;
/// Longest name of a node. It is part of every connection token, so of every request line of a client.
pub const NODE_NAME_BYTES_MAX: usize = 16;
/// Shortest key of connection tokens: 128 bits cannot be tried out.
pub const TOKEN_KEY_BYTES_MIN: usize = 16;
/// Largest clock difference between us and who issues tokens. Beyond it, the clock should be set instead.
pub const CLOCK_SKEW_MS_MAX: u64 = 10 * 60 * 1000;
/// How long a poll may wait. Balancers often give up after 60 s, so the default of ASP.NET (90 s) may have to be lowered.
pub const POLL_TIMEOUT_MS_MIN: u64 = 1000;
pub const POLL_TIMEOUT_MS_MAX: u64 = 10 * 60 * 1000;
/// How long a client without a poll or a connection is kept. ASP.NET's `DisconnectTimeout` is 15 s.
pub const DISCONNECT_TIMEOUT_MS_MIN: u64 = 1000;
pub const DISCONNECT_TIMEOUT_MS_MAX: u64 = 5 * 60 * 1000;
/// Bytes kept for a client that may come back. ASP.NET's `StatefulReconnectBufferSize` default is 100,000.
pub const STATEFUL_BUFFER_BYTES_DEFAULT: u32 = 100_000;
pub const STATEFUL_BUFFER_BYTES_MIN: u32 = 1024;
pub const STATEFUL_BUFFER_BYTES_MAX: u32 = 16 * 1024 * 1024;
/// Messages of the largest size that one POST may carry: JavaScript clients join what waits while a POST is on its way.
pub const POST_BODY_MESSAGES_MAX: u32 = 8;
/// Longest time a node that is told to stop goes on as before: a balancer notices within a minute, or not at all.
pub const DRAIN_DELAY_MS_MAX: u64 = 10 * 60 * 1000;
/// Longest time over which it sends its clients away: a million of them over an hour are fewer than 300 a second.
pub const DRAIN_WINDOW_MS_MAX: u64 = 60 * 60 * 1000;
/// Largest configuration file, and largest file it names.
pub const CONFIG_FILE_BYTES_MAX: u64 = 1024 * 1024;

const _: () = assert!(UPSTREAM_QUEUE_BYTES_DEFAULT >= UPSTREAM_QUEUE_MESSAGES_MIN * MESSAGE_BYTES_MAX);
const _: () = assert!(CLIENTS_DEFAULT <= CLIENTS_MAX);

// ---- SignalR messages -------------------------------------------------------------------------------------------

/// Largest SignalR message a client may send, framing included. ASP.NET Core's `MaximumReceiveMessageSize` default.
pub const MESSAGE_BYTES_DEFAULT: u32 = 32 * 1024;
/// Smallest and largest value the configuration takes for it.
pub const MESSAGE_BYTES_MIN: u32 = 1024;
/// An app server has to be told to take more than 32 KiB; 1 MiB is already generous for a view model.
pub const MESSAGE_BYTES_MAX: u32 = 1024 * 1024;
/// Deepest JSON nesting: System.Text.Json's default in the app server's parser (contract 2.2).
pub const JSON_DEPTH_MAX: u32 = 64;
/// Arguments of an invocation that are remembered by position; more are counted only. No hub method takes more than three.
pub const ARGUMENTS_KEPT: usize = 4;
/// Longest hub method name that is compared or echoed in an error.
pub const METHOD_NAME_BYTES_MAX: usize = 128;
/// Longest handshake record: `{"protocol":"messagepack","version":2}` with room for unknown members.
pub const HANDSHAKE_BYTES_MAX: usize = 4096;
/// Longest name taken from an app server's list of recipients: our origin ids have 22 bytes, but users are named by whoever issues their
/// tokens, often with an e-mail address (RFC 5321 allows 254).
pub const RECIPIENT_BYTES_MAX: usize = 256;

/// Stateful reconnect: an Ack goes out this long after the first message it acknowledges (reference 14) ...
pub const ACK_AFTER_MS: u64 = 1_000;
/// ... or after this many bytes: a JS client stops sending at 100,000 unacknowledged ones.
pub const ACK_AFTER_BYTES: usize = 48 * 1024;

// ---- WebSocket --------------------------------------------------------------------------------------------------

/// RFC 6455 §5.5: control frames carry at most 125 bytes.
pub const WS_CONTROL_BYTES_MAX: usize = 125;
/// RFC 6455 §5.2: 2 bytes, 8 of extended length, 4 of mask.
pub const WS_HEADER_BYTES_MAX: usize = 14;

// ---- HTTP -------------------------------------------------------------------------------------------------------

/// Largest request head. Kestrel's `MaxRequestHeadersTotalSize` is 32 KiB.
pub const HTTP_HEAD_BYTES_MAX: usize = 32 * 1024;
/// Most header fields in a request. Kestrel's `MaxRequestHeaderCount`.
pub const HTTP_HEADERS_MAX: usize = 100;
/// Longest request target (path and query). Kestrel's `MaxRequestLineSize` is 8 KiB.
pub const HTTP_TARGET_BYTES_MAX: usize = 8 * 1024;
/// Largest request body that is read and thrown away (negotiate has none). Bodies that carry messages have a bound of their own.
pub const HTTP_BODY_BYTES_MAX: u64 = 4 * 1024;
/// Longest line of PROXY protocol version 1, its end included: the specification's worst case.
pub const PROXY_LINE_BYTES_MAX: usize = 107;
/// Largest header of PROXY protocol version 2. Addresses and the registered extensions (names of hosts and certificates, an id of 128
/// bytes) fit well; it is a receive buffer's size.
pub const PROXY_HEADER_BYTES_MAX: usize = 4 * 1024;

// ---- Identity ---------------------------------------------------------------------------------------------------

/// Longest bearer token that is looked at. In a query string none longer could arrive (`HTTP_TARGET_BYTES_MAX`), and those of the
/// common issuers have 1 to 2 KiB.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Keys of a node together: issuers publish the present key, the next, and a few old ones; 64 are those of several issuers.
pub const TOKEN_KEYS_MAX: usize = 64;
/// Keys of its algorithm that a token which names none is tried with. A forged one costs this many verifications.
pub const TOKEN_KEY_TRIES_MAX: usize = 8;
/// RFC 7518 section 3.2 asks for 32 bytes, and .NET does since Microsoft.IdentityModel 6.30.1. Before, it took 16, and secrets of
/// that time are about: that of dotNetify's own examples has 28.
pub const TOKEN_SECRET_BYTES_MIN: usize = 16;
/// RFC 7518 section 3.3.
pub const TOKEN_RSA_BITS_MIN: usize = 2048;
/// The largest that the `rsa` crate verifies with.
pub const TOKEN_RSA_BITS_MAX: usize = 4096;

const _: () = assert!(TOKEN_BYTES_MAX <= HTTP_TARGET_BYTES_MAX && TOKEN_KEY_TRIES_MAX <= TOKEN_KEYS_MAX);

// ---- a shard's memory -------------------------------------------------------------------------------------------

/// Provided buffers for client sockets: how many (a power of two; io-architecture section 6 asks for at least 1024) ...
pub const RECV_BUFFERS: u16 = 1024;
/// ... and how large. A browser's upgrade request or a typical message fits into one.
pub const RECV_BUFFER_BYTES: u32 = 4 * 1024;
/// Provided buffers for lanes: few sockets, much data each.
pub const LANE_RECV_BUFFERS: u16 = 64;
pub const LANE_RECV_BUFFER_BYTES: u32 = 64 * 1024;
/// Kept byte buffers (half records, request heads).
pub const POOLED_BUFFERS_MAX: usize = 256;
/// A kept buffer holds the largest default message; larger ones go back to the allocator.
pub const POOLED_BUFFER_BYTES_MAX: usize = 64 * 1024;
/// A frame that one connection gathers in is closed at this size and another begun.
pub const FRAME_GATHER_BYTES: usize = 16 * 1024;
/// A frame's memory is kept for the next one up to this size.
pub const FRAME_KEPT_BYTES_MAX: usize = 64 * 1024;
/// ... and all free frames together up to this one.
pub const FRAME_POOL_KEPT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Submission and completion queue entries of a shard's ring. Polls are multishot and sends resolve at submit, so the
/// completion queue must take one readiness event for many connections at once.
pub const RING_SUBMISSIONS: u32 = 1024;
pub const RING_COMPLETIONS: u32 = 16 * 1024;
/// Sends handed to the kernel at once: a fan-out is cut into pieces of this size so that the loop stays responsive.
pub const SEND_BATCH: usize = 256;
/// Frames of one connection in one send.
pub const SEND_PARTS: usize = 16;

// ---- lanes ------------------------------------------------------------------------------------------------------

/// Largest record an app server may send: a SendToManyAsync for 10,000 clients carries 250 KB of ids (contract 4.6).
pub const LANE_RECORD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes that may wait in a lane's send queue before further client messages wait in front of it instead.
pub const LANE_SEND_BYTES_HIGH: u32 = 4 * 1024 * 1024;
/// Disconnect notices kept for a lane: while it is down, and for a while after they were written. One is an origin id and a hub id; past
/// the bound the oldest is dropped, counted as a leak if it had not been written.
pub const LANE_NOTICES_MAX: usize = 65_536;
/// Invocations on one lane that an app server may owe an answer to. It works on one after the other, so a few keep it busy over any
/// network; more only wait in its memory instead of ours, and are lost with the lane.
pub const IN_FLIGHT_DEFAULT: u32 = 256;
pub const IN_FLIGHT_MAX: u32 = 65_536;
/// Longest name of a view model, as raw JSON, that is kept with an invocation to tell its client what became of it.
pub const FLIGHT_NAME_BYTES_MAX: usize = 1024;
/// Most are not longer than this.
pub const FLIGHT_NAME_BYTES_USUAL: usize = 32;
/// An app server that answers nothing for so long holds everybody on the lane up. The longest that a view model may take to be made.
pub const ACKNOWLEDGE_TIMEOUT_SECONDS_DEFAULT: u64 = 30;
pub const ACKNOWLEDGE_TIMEOUT_MS_MAX: u64 = 60 * 60 * 1000;
/// Bytes kept of what one client's view models were requested with. A view model's argument is a few words, its headers a bearer token.
pub const REPLAY_BYTES_DEFAULT: u32 = 16 * 1024;
pub const REPLAY_BYTES_MAX: u32 = 1024 * 1024;
/// View models requested again that an app server may owe an answer to on one lane: the clients that were not harmed go on meanwhile.
pub const REPLAYS_IN_FLIGHT_MAX: u32 = 16;
/// Where nothing is acknowledged, so many are requested again in this time.
pub const REPLAY_PACE_MS: u64 = 10;
/// The same for ends of clients, each a little work for an app server.
pub const NOTICES_IN_FLIGHT_MAX: u32 = 64;
/// Places of a lane's queues that are kept when they have run empty: enough that a busy lane allocates none.
pub const LANE_PLACES_KEPT: usize = 256;
/// Messages of one client that wait in front of a lane before it is read no further.
pub const CLIENT_WAITING_MAX: u16 = 4;
/// A lane on which nothing at all arrived for this long is dead: SignalR's server timeout, two missed pings.
pub const LANE_SILENCE_MS: u64 = 30_000;
/// Without acknowledgements, ends of clients that were told on a lane are kept for so long: it may have been dead as long as nobody noticed, and
/// a shard may be held up.
pub const TOLD_KEPT_MS: u64 = LANE_SILENCE_MS + 10_000;
/// What was on a lane when it was lost may still be worked on by an app server that is slow to notice, behind the end of the client that it heard
/// elsewhere, which makes the client anew (contract 2.5). So that end is told again, twice.
pub const TELL_AGAIN_MS: [u64; 2] = [5_000, 60_000];
/// Ends of clients that a shard keeps to tell again, for each of these times: of all clients of a usual node, twice. Past it the oldest is
/// told at once, so that a lane that is lost again and again costs no more.
pub const AGAIN_MAX: usize = 262_144;
/// Our pings to the app server.
pub const LANE_KEEP_ALIVE_MS: u64 = 15_000;

// ---- the journal ------------------------------------------------------------------------------------------------

/// Header of a journal: the names and urls of a configuration, which has at most a mebibyte, escaped.
pub const JOURNAL_HEADER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How often a node looks for journals of processes that have ended since: a predecessor that could not tell everybody in time, another node
/// of the machine that nobody starts again. Reading a folder takes microseconds.
pub const JOURNAL_LOOK_MS: u64 = 10_000;
/// Files of processes that have ended that one look takes over. Each is a crash since an app server was last reached.
pub const JOURNALS_MAX: usize = 256;
/// How long one waits for another that looks at the same folder, which takes milliseconds. The control plane does nothing else meanwhile.
pub const JOURNAL_PATIENCE_MS: u64 = 1_000;
/// Ids that are read of a dead process's journal, and handed to a shard, at once: a page of it.
pub const JOURNAL_PAGE_IDS: usize = 512;
/// Ids of a dead process of which a lane is told at once ...
pub const BURIALS_AT_ONCE: u32 = 20;
/// ... and then after this time the next: a thousand a second for each lane leaves an app server, which handles one message of a
/// lane after the other, most of its time for clients that live and have all come back at once.
pub const BURIALS_PAUSE_MS: u64 = 20;
/// How long after a node has found a journal it begins to tell of them: what the dead process wrote last is handled first. A message that an
/// app server handles behind the end of its client brings the client back for good (contract 2.5) ...
pub const BURIALS_REST_MS: u64 = 2_000;
/// ... so it is told again, when even an app server that is slow to notice has done with the dead process's lanes.
pub const BURIALS_AGAIN_MS: u64 = 60_000;
const _: () = assert!(BURIALS_AGAIN_MS > TOLD_KEPT_MS);
/// How long ids are kept for an app server that the configuration does not name: it may be another node's that shares the folder.
pub const JOURNAL_KEPT_SECONDS: u64 = 7 * 24 * 60 * 60;

// ---- connections ------------------------------------------------------------------------------------------------

/// After our last byte the peer has this long to close its side (ASP.NET's WebSocket `CloseTimeout`).
pub const LINGER_MS: u64 = 5_000;
/// An HTTP connection between two requests.
pub const HTTP_IDLE_MS: u64 = 60_000;
/// Bodies of POSTs that came before their connection's first poll or event stream, of one shard together. Python's signalrcore sends
/// its handshake that early.
pub const EARLY_BODIES_BYTES_MAX: usize = 4 * 1024 * 1024;
/// ... and how many: each is looked for among all of them, and the smallest take more than what they say.
pub const EARLY_BODIES_MAX: usize = 4096;
/// A POST of a client that is not to be read at present waits this long for its answer. Well below what clients wait for one (100 s) ...
pub const POST_PATIENCE_MS: u64 = 10_000;
/// ... and is tried again this often.
pub const POST_AGAIN_MS: u64 = 100;
/// Used tokens a shard remembers so that each begins one connection only; an entry takes about 100 bytes.
pub const USED_TOKENS_MAX: usize = 65_536;
/// Groups one client may be in.
pub const GROUPS_PER_CLIENT_MAX: u32 = 1024;
/// Orders waiting for a shard, from the control plane and from other shards, and for the control plane.
pub const BUS_ORDERS: usize = 1024;
/// Bytes of records that are under way to one shard from the others, where the lanes of a node share a hub id: two of the largest. A shard
/// that takes its orders has none of them before it for longer than a turn, and one that is stuck must not hold gigabytes.
pub const RELAY_BYTES_MAX: usize = 2 * LANE_RECORD_BYTES_MAX;
/// Connections of the admin endpoint at once: operators and scrapers, not clients.
pub const ADMIN_CONNECTIONS_MAX: usize = 64;
/// What `signalring health` reads of an answer: a head and the line that says what is wrong.
pub const HEALTH_ANSWER_BYTES_MAX: usize = 16 * 1024;
/// How long a stopping node takes to tell everybody.
pub const STOP_MS: u64 = 5_000;
/// How long it waits for the first request on a connection that was made just before, to answer it: a round trip or two.
pub const STOP_REQUEST_MS: u64 = 1_000;
/// How long after the window of a drain the next polls of clients are waited for, which fetch their last words: a round trip or two.
pub const LAST_POLLS_MS: u64 = 1_000;

const _: () = assert!(STOP_REQUEST_MS < STOP_MS);
const _: () = assert!(RECV_BUFFERS.is_power_of_two() && LANE_RECV_BUFFERS.is_power_of_two());
const _: () = assert!(SEND_BATCH <= RING_SUBMISSIONS as usize);
const _: () = assert!(POOLED_BUFFER_BYTES_MAX > MESSAGE_BYTES_DEFAULT as usize);
const _: () = assert!(POOLED_BUFFER_BYTES_MAX >= HTTP_HEAD_BYTES_MAX);
const _: () = assert!(LANE_SILENCE_MS >= 2 * LANE_KEEP_ALIVE_MS);
/// Lanes of one shard.
pub const LANES_PER_SHARD_MAX: u16 = 1024;
/// ... and of all shards to all urls: each is a connection that app servers and the control plane keep alive.
pub const LANES_MAX: u32 = 16 * 1024;
/// Places kept free beyond the connection limit, of a shard and of the node, so that one too many is told so (503) and not just cut off.
pub const CONNECTIONS_SPARE: u32 = 64;
const _: () = assert!(CLIENTS_MAX + CONNECTIONS_SPARE + (LANES_PER_SHARD_MAX as u32) < 1 << 24);
/// How long accepting rests when the process has no descriptor left.
pub const ACCEPT_REST_MS: u64 = 100;
/// The app server's `MaximumReceiveMessageSize`: it closes a lane that carries a larger message (contract 4.6). The default is also
/// the least: contexts are bounded so that half of it is left for the client's own message.
pub const UPSTREAM_MESSAGE_BYTES_DEFAULT: u32 = 32 * 1024;
/// As large as a record we take from an app server.
pub const UPSTREAM_MESSAGE_BYTES_MAX: u32 = LANE_RECORD_BYTES_MAX as u32;
/// How long a starting node waits for an address that somebody else holds: a predecessor that has just been killed lets go in time.
pub const LISTEN_PATIENCE_MS: u64 = 1_000;
/// How often certificate and key files are looked at for changes.
pub const CREDENTIALS_LOOK_MS: u64 = 10_000;
/// A lane that was up for so long was no mistake: it is dialled again at once when it is lost.
pub const LANE_STEADY_MS: u64 = 2000;
/// So many lanes may be lost one after the other while the app server had the same request before it; the third is no chance any more.
pub const SUSPECT_TIMES: u32 = 3;
/// ... each within so long of the one before: longer than the longest wait between two attempts to dial.
pub const SUSPECT_MS: u64 = 60_000;
/// ... of so many requests at a time, a shard.
pub const SUSPECTS_MAX: usize = 64;
/// Log lines of one kind that peers cause, a shard and window: enough to see what happens, too few to fill a disk.
pub const LOG_LINES_MAX: u32 = 10;
pub const LOG_WINDOW_MS: u64 = 10_000;
/// How long an Observer that cannot be reached is left alone at least (contract 7.2).
pub const OBSERVER_RETRY_MS: u64 = 60_000;
/// Different reasons that are logged for a url that cannot be dialled, until it can: a reason may have a part that changes every time.
pub const URL_TROUBLES_MAX: usize = 8;
/// How often a node looks at what it uses: as often as an Observer is told (contract 7.2).
pub const USAGE_LOOK_MS: u64 = 1_000;
/// Interim answers (1xx) an app server may send before the real one.
pub const INTERIM_REPLIES_MAX: usize = 8;
/// How long a new process and the running one wait for each other's next word when sockets are taken over. A start takes well under
/// a second, and `TAKE_OVER_LANES_MS` more.
pub const TAKE_OVER_MS: u64 = 30_000;
/// How long a new process waits until every shard reaches an app server, before it gives up and leaves the clients where they are.
pub const TAKE_OVER_LANES_MS: u64 = 10_000;
const _: () = assert!(2 * TAKE_OVER_LANES_MS < TAKE_OVER_MS);
/// Sockets that go with one message: the kernel takes 253 (SCM_MAX_FD).
pub const TAKE_OVER_SOCKETS_MAX: usize = 128;
/// Longest message between the two: so many sockets with the longest paths take a fifth of it.
pub const TAKE_OVER_MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// How much longer than its shards a stopping node waits for its control plane, which may hang in the system's resolver.
pub const STOP_GRACE_MS: u64 = 2_000;
/// How soon the loss of a lane is reported again when the control plane's queue was full.
pub const LANE_REPORT_AGAIN_MS: u64 = 10;
/// Constant part of a client's context, escaped for a JSON lane: half of what an app server takes as a message by default, so
/// that the other half is left for what the client says. A browser's has 1.4 KB (contract 4.6).
pub const CONTEXT_BYTES_MAX: usize = 16 * 1024;

// ---- TLS --------------------------------------------------------------------------------------------------------

/// RFC 8446 §5.1, RFC 5246 §6.2.1: a record carries at most 2^14 bytes.
pub const TLS_PLAIN_BYTES_MAX: usize = 16 * 1024;
/// What a record of ours is longer than what it carries: header (5), nonce (8, TLS 1.2 only), content type (1), tag (16); and room
/// for an answer to a key update in front of it.
pub const TLS_EXPANSION_BYTES_MAX: usize = 256;
/// Largest record with its header: RFC 5246 §6.2.3 allows an expansion of 2048.
pub const TLS_RECORD_BYTES_MAX: usize = 5 + TLS_PLAIN_BYTES_MAX + 2048;
/// Bytes kept of an open connection between two reads: a cut record, and a short handshake message (a session ticket, a key update)
/// of which a part is still to come.
pub const TLS_CARRY_BYTES_MAX: usize = 2 * TLS_RECORD_BYTES_MAX;
/// ... and from an app server during the handshake: rustls takes messages of up to 64 KiB (a certificate chain), and they may come in
/// several records. The time of an exchange bounds how long this is held.
pub const TLS_HANDSHAKE_CARRY_BYTES_MAX: usize = 64 * 1024 + TLS_CARRY_BYTES_MAX;
/// Sessions a node keeps to resume lanes: one an app server's name, and a certificate's reload makes no new ones.
pub const TLS_SESSIONS_KEPT: usize = 8;
/// Largest file of certificates or a key. The list of all public authorities has 230 KB.
pub const PEM_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Bytes of a connection that are sealed at once; what the kernel has not taken stays in plain, in the bounded queue.
pub const TLS_SEALED_BYTES_MAX: usize = 4 * TLS_PLAIN_BYTES_MAX;
const _: () = assert!(POOLED_BUFFER_BYTES_MAX >= TLS_CARRY_BYTES_MAX);

// ---- The load tester ----------------------------------------------------------------------------------------------
//
// Not the node's: what `signalring load` may ask of itself and of the machine it runs on.

/// Clients for one server. A connection takes a descriptor, and each a task of some 10 KB.
pub const LOAD_CLIENTS_MAX: u32 = 1_000_000;
/// Beyond, rooms are mostly empty.
pub const LOAD_GROUPS_MAX: u32 = 100_000;
/// Longest period: a day; more is more often milliseconds where seconds are meant.
pub const LOAD_SECONDS_MAX: f64 = 86_400.0;
/// Longest interval between messages.
pub const LOAD_INTERVAL_MS_MAX: u64 = 60 * 60 * 1000;
/// Threads: beyond the cores of any one machine a load is made on.
pub const LOAD_THREADS_MAX: u16 = 64;
/// Clients of one source address on loopback: a client may hold two of an address's 28,000 ports for a minute, one for negotiating.
pub const LOAD_CONNECTIONS_PER_ADDRESS_DEFAULT: u32 = 10_000;
/// Clients that one thread connects at the same time: a listener's backlog is bounded, and a client that waits in it is slow, not early.
pub const LOAD_DIALLING_MAX: usize = 128;
/// Updates of one burst.
pub const LOAD_BURST: u32 = 20;
/// Bursts of one client that may be under way: a server that is slower than the load gets no more of it.
pub const LOAD_BURSTS_UNDER_WAY_MAX: u32 = 3;
/// Descriptors beside the clients': the runtime's, standard streams, resolver, and the second connection of clients that negotiate.
pub const LOAD_DESCRIPTORS_SLACK: u64 = 64 + LOAD_DIALLING_MAX as u64;
/// A connection that has not become a client by then has failed. As long as the .NET client waits for its handshake, and a
/// second half for the state.
pub const LOAD_CONNECT_TIMEOUT_MS: u64 = 30_000;
/// What is under way when the load ends may take this long before it counts as missed.
pub const LOAD_SETTLE_TIMEOUT_MS: u64 = 10_000;
/// How long a client that leaves waits for the server's side of the close.
pub const LOAD_CLOSE_TIMEOUT_MS: u64 = 5_000;
/// Keep-alive of SignalR clients: a ping every 15 s; gone without a sign of the server for 30 s.
pub const LOAD_PING_INTERVAL_MS: u64 = 15_000;
pub const LOAD_SERVER_TIMEOUT_MS: u64 = 30_000;
/// Gaps of one client that are remembered as ranges, to tell late messages from repeated ones. More of them stay missed.
pub const LOAD_GAPS_MAX: usize = 256;
/// Senders of other programs that a client follows in its chat room.
pub const LOAD_STRANGERS_MAX: usize = 1024;
/// Different errors that are kept as text, for the report.
pub const LOAD_FAULTS_MAX: usize = 16;
/// Longest WebSocket message that is taken: a state with everything a busy room ever said.
pub const LOAD_MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Read buffer of one connection. The library's 128 KiB would be 640 MB for 5,000 clients.
pub const LOAD_READ_BUFFER_BYTES: usize = 4 * 1024;
/// Answer to a negotiation.
pub const LOAD_NEGOTIATION_BYTES_MAX: usize = 64 * 1024;
/// Other addresses that a negotiation may point to, one after the other, as SignalR's clients allow.
pub const LOAD_REDIRECTS_MAX: usize = 100;

// ---- The demonstration --------------------------------------------------------------------------------------------

/// Clients of its load: both ends of their connections, two nodes and the app server are one process, whose descriptors are often 20,000.
pub const DEMO_CLIENTS_MAX: u32 = 5_000;
/// A load that lost clients begins again no sooner than this after its beginning.
pub const DEMO_LOAD_AGAIN_MS: u64 = 3_000;
/// Ports that are tried from each part's usual one on.
pub const DEMO_PORTS: u16 = 50;
/// How often ports are chosen before a start fails because somebody else took one of them meanwhile.
pub const DEMO_START_TRIES: u32 = 3;
