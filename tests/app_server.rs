//! The app server double against the upstream contract (`reference/dotnetify-forwarding.md`, sections 2 to 4 and 8), driven as a
//! direct client and as a proxy's lane over real sockets, with foreign WebSocket code on both ends.
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use signalring::demo::app::{self, AppOptions, AppServer};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

const PATIENCE: Duration = Duration::from_secs(10);

async fn server() -> AppServer {
    server_with(AppOptions::default()).await
}

async fn server_with(options: AppOptions) -> AppServer {
    app::bind(SocketAddr::from(([127, 0, 0, 1], 0)), options).await.expect("a free port")
}

/// A SignalR connection: a direct client or a lane, depending on what it calls.
struct Peer {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    unread: VecDeque<Value>,
    next_id: u64,
}

impl Peer {
    /// Without a handshake.
    async fn raw(server: &AppServer, query: &str) -> Peer {
        let url = format!("ws://{}/dotnetify{query}", server.local_addr);
        let (socket, _) = tokio_tungstenite::connect_async(url).await.expect("an upgrade");
        Peer { socket, unread: VecDeque::new(), next_id: 0 }
    }

    async fn connect(server: &AppServer) -> Peer {
        Peer::connect_with(server, "").await
    }

    async fn connect_with(server: &AppServer, query: &str) -> Peer {
        let mut peer = Peer::raw(server, query).await;
        peer.send_text("{\"protocol\":\"json\",\"version\":1}\u{1e}").await;
        assert_eq!(peer.next().await, Some(json!({})));
        peer
    }

    async fn send_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.expect("an open socket");
    }

    async fn send(&mut self, message: Value) {
        self.send_text(&format!("{message}\u{1e}")).await;
    }

    /// The next record but pings; `None` at the end of the connection.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(record) = self.unread.pop_front() {
                if record["type"] == 6 {
                    continue;
                }
                return Some(record);
            }
            match timeout(PATIENCE, self.socket.next()).await.expect("something within ten seconds") {
                Some(Ok(Message::Text(text))) => {
                    let records = text.as_str().strip_suffix('\u{1e}').expect("whole records");
                    self.unread.extend(
                        records.split('\u{1e}').map(|record| serde_json::from_str::<Value>(record).expect("JSON")),
                    );
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// Everything until the connection ends.
    async fn rest(&mut self) -> Vec<Value> {
        let mut records = Vec::new();
        while let Some(record) = self.next().await {
            records.push(record);
        }
        records
    }

    /// Calls a hub method and waits for its completion: (the `Response_VM` arguments that came before it, its error).
    async fn try_call(&mut self, target: &str, arguments: Value) -> (Vec<Value>, Option<String>) {
        self.next_id += 1;
        let id = self.next_id.to_string();
        self.send(json!({ "type": 1, "invocationId": id, "target": target, "arguments": arguments })).await;
        let mut responses = Vec::new();
        loop {
            let record = self.next().await.expect("a completion");
            if record["type"] == 3 {
                assert_eq!(record["invocationId"], id.as_str(), "completions come in order");
                let error = record["error"].as_str().map(str::to_owned);
                assert_eq!(
                    record.get("result").is_some(),
                    error.is_none(),
                    "a void method's completion has result null"
                );
                return (responses, error);
            }
            responses.push(response(&record));
        }
    }

    async fn call(&mut self, target: &str, arguments: Value) -> Vec<Value> {
        let (responses, error) = self.try_call(target, arguments).await;
        assert_eq!(error, None);
        responses
    }

    /// Forwards as a proxy does: string arguments, and a context with this origin id and hub id.
    async fn forward(&mut self, method: &str, arguments: Value, origin: &str, hub_id: &str) -> Vec<Value> {
        let arguments = json!([method, arguments, { "$fwdConnContext": context(origin, hub_id) }]);
        self.call("Invoke", arguments).await
    }

    async fn request(&mut self, vm_id: &str, argument: Value, origin: &str, hub_id: &str) -> Vec<Value> {
        self.forward("Request_VM", json!([vm_id, argument.to_string()]), origin, hub_id).await
    }

    async fn update(&mut self, vm_id: &str, data: Value, origin: &str, hub_id: &str) -> Vec<Value> {
        self.forward("Update_VM", json!([vm_id, data.to_string()]), origin, hub_id).await
    }

    async fn off(&mut self, origin: &str, hub_id: &str) -> Vec<Value> {
        self.forward("OnDisconnectedAsync", json!([null]), origin, hub_id).await
    }

    /// The next response that was pushed.
    async fn pushed(&mut self) -> Value {
        response(&self.next().await.expect("a response"))
    }
}

fn response(record: &Value) -> Value {
    assert_eq!(record["type"], 1, "{record}");
    assert_eq!(record["target"], "Response_VM");
    assert!(record.get("invocationId").is_none(), "clients close on a server that wants a result");
    let arguments = record["arguments"].as_array().expect("arguments");
    assert_eq!(arguments.len(), 1, "one argument, an array");
    arguments[0].clone()
}

fn context(origin: &str, hub_id: &str) -> String {
    json!({
        "HubId": hub_id,
        "TimeStamp": "2024-05-06T07:08:09.1234567+00:00",
        "ConnectionId": origin,
        "HttpConnection": { "ConnectionId": "0HM", "LocalIpAddressString": "10.0.0.2", "RemoteIpAddressString": "10.0.0.7", "LocalPort": 5000, "RemotePort": 51234 },
        "HttpRequestHeaders": { "AllHeaders": { "Host": ["proxy:5000"] }, "UserAgent": null },
        "Items": {}
    })
    .to_string()
}

/// `[vmId, vmData]` with the data parsed.
fn data(response: &Value) -> Value {
    serde_json::from_str(response[1].as_str().expect("data is JSON text")).expect("JSON")
}

/// `["SendAsync", [vmId, vmData], {"$fwdConnId": id}]` with the data parsed.
fn sent(response: &Value, vm_id: &str, origin: &str) -> Value {
    assert_eq!(response[0], "SendAsync");
    assert_eq!(response[1][0], vm_id);
    assert_eq!(response[2], json!({ "$fwdConnId": origin }));
    serde_json::from_str(response[1][1].as_str().expect("data is JSON text")).expect("JSON")
}

fn methods(responses: &[Value]) -> Vec<&str> {
    responses.iter().map(|response| response[0].as_str().expect("a method")).collect()
}

/// Waits for what the server does by itself, after a socket's end for instance.
async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn http(server: &AppServer, head: &str) -> String {
    exchange(server, head, "").await
}

/// Asks one of the hooks for something. The status line says what came of it.
async fn hook(server: &AppServer, name: &str, body: Value) -> String {
    let head = format!("POST /__double/{name} HTTP/1.1\r\nContent-Type: application/json\r\n");
    exchange(server, &head, &body.to_string()).await
}

async fn exchange(server: &AppServer, head: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(server.local_addr).await.expect("a connection");
    let request = format!("{head}Host: app\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.expect("a request");
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an answer").expect("text");
    answer
}

fn body(answer: &str) -> Value {
    serde_json::from_str(answer.split_once("\r\n\r\n").expect("a body").1).expect("JSON")
}

const QUIET_HELLO: &str = r#"{"$vmArg":{"TickInterval":0}}"#;

fn quiet() -> Value {
    serde_json::from_str(QUIET_HELLO).expect("JSON")
}

// ---- negotiate, handshake, keep-alive, close ---------------------------------------------------------------------------

#[tokio::test]
async fn negotiate_versions_and_tokens() {
    let server = server().await;
    let one = body(&http(&server, "POST /dotnetify/negotiate?negotiateVersion=1 HTTP/1.1\r\n").await);
    assert_eq!(one["negotiateVersion"], 1);
    assert_eq!(one["connectionId"].as_str().map(str::len), Some(22));
    assert_ne!(one["connectionId"], one["connectionToken"]);
    assert_eq!(
        one["availableTransports"],
        json!([{ "transport": "WebSockets", "transferFormats": ["Text", "Binary"] }])
    );
    let zero = body(&http(&server, "POST /dotnetify/negotiate HTTP/1.1\r\n").await);
    assert_eq!(zero["negotiateVersion"], 0);
    assert!(zero.get("connectionToken").is_none());
    let error = body(&http(&server, "POST /dotnetify/negotiate?negotiateVersion=x HTTP/1.1\r\n").await);
    assert_eq!(error, json!({ "error": "The client requested a non-integer protocol version." }));

    let token = one["connectionToken"].as_str().unwrap();
    let mut client = Peer::connect_with(&server, &format!("?id={token}")).await;
    // The view model sees the public id, not the token.
    client.call("Request_VM", json!(["EchoVM", null])).await;
    let url = format!("ws://{}/dotnetify?id={token}", server.local_addr);
    assert!(tokio_tungstenite::connect_async(url).await.unwrap_err().to_string().contains("409"));
    let url = format!("ws://{}/dotnetify?id={}", server.local_addr, one["connectionId"].as_str().unwrap());
    assert!(tokio_tungstenite::connect_async(url).await.unwrap_err().to_string().contains("404"));
    let poll = http(&server, "GET /dotnetify HTTP/1.1\r\n").await;
    assert!(poll.starts_with("HTTP/1.1 404") && poll.contains("LongPolling transport not supported"), "{poll}");
}

#[tokio::test]
async fn cross_origin_calls_with_credentials() {
    let server = server().await;
    let preflight = "OPTIONS /dotnetify/negotiate HTTP/1.1\r\nOrigin: http://page\r\nAccess-Control-Request-Headers: x-requested-with\r\n";
    let answer = http(&server, preflight).await.to_lowercase();
    assert!(answer.starts_with("http/1.1 204"), "{answer}");
    for header in [
        "access-control-allow-origin: http://page",
        "access-control-allow-credentials: true",
        "access-control-allow-headers: x-requested-with",
    ] {
        assert!(answer.contains(header), "{answer}");
    }
}

#[tokio::test]
async fn handshake_errors_end_without_a_close_message() {
    let server = server().await;
    for (request, error) in [
        (r#"{"protocol":"messagepack","version":1}"#, "The protocol 'messagepack' is not supported."),
        (r#"{"protocol":"json","version":3}"#, "The server does not support version 3 of the 'json' protocol."),
        ("GET / HTTP/1.1", "An unexpected error occurred during connection handshake."),
    ] {
        let mut peer = Peer::raw(&server, "").await;
        peer.send_text(&format!("{request}\u{1e}")).await;
        assert_eq!(peer.rest().await, [json!({ "error": error })]);
    }
    let mut peer = Peer::raw(&server, "").await;
    peer.send_text("{\"version\":2,\"protocol\":\"json\"}\u{1e}").await;
    assert_eq!(peer.next().await, Some(json!({})));
}

#[tokio::test]
async fn a_silent_handshake_is_canceled() {
    let server =
        server_with(AppOptions { handshake_timeout: Duration::from_millis(50), ..AppOptions::default() }).await;
    let mut peer = Peer::raw(&server, "").await;
    assert_eq!(peer.rest().await, [json!({ "error": "Handshake was canceled." })]);
}

#[tokio::test]
async fn records_may_be_split_and_joined() {
    let server = server().await;
    let mut peer = Peer::raw(&server, "").await;
    // The first call follows the handshake in the same frame; the second is cut in the middle of a character.
    let records = "{\"protocol\":\"json\",\"version\":1}\u{1e}{\"arguments\":[\"HelloWorldVM\",{\"$vmArg\":{\"FirstName\":\"J\u{e9}\",\"TickInterval\":0}}],\"invocationId\":\"0\",\"target\":\"request_vm\",\"type\":1}\u{1e}";
    let cut = records.find('\u{e9}').unwrap() + 1;
    for part in [&records.as_bytes()[..cut], &records.as_bytes()[cut..]] {
        peer.socket.send(Message::binary(part.to_vec())).await.unwrap();
    }
    assert_eq!(peer.next().await, Some(json!({})));
    let state = response(&peer.next().await.unwrap());
    assert_eq!(data(&state)["FullName"], "J\u{e9} World");
    assert_eq!(peer.next().await, Some(json!({ "type": 3, "invocationId": "0", "result": null })));
}

#[tokio::test]
async fn pings_come_and_only_a_peer_that_pinged_can_time_out() {
    let options = AppOptions {
        keep_alive: Duration::from_millis(20),
        client_timeout: Duration::from_millis(300),
        ..AppOptions::default()
    };
    let server = server_with(options).await;
    let mut never_pinged = Peer::connect(&server).await;
    let mut pinged = Peer::connect(&server).await;
    pinged.send(json!({ "type": 6 })).await;
    let raw = timeout(PATIENCE, never_pinged.socket.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(raw, Message::text("{\"type\":6}\u{1e}"));
    assert_eq!(pinged.rest().await, [error_close()]);
    assert_eq!(server.state().timeouts, 1);
    never_pinged.call("Dispose_VM", json!(["X"])).await;
}

fn error_close() -> Value {
    json!({ "type": 7, "error": "Connection closed with an error.", "allowReconnect": true })
}

#[tokio::test]
async fn messages_over_the_limit_close_the_connection() {
    let server = server().await;
    let message = |size: usize| {
        let head = r#"{"type":1,"invocationId":"9","target":"Request_VM","arguments":["HelloWorldVM",{"$vmArg":{"TickInterval":0},"x":""#;
        let tail = "\"}]}\u{1e}";
        format!("{head}{}{tail}", "x".repeat(size - head.len() - tail.len()))
    };
    let mut peer = Peer::connect(&server).await;
    // Exactly the limit, separator included, and several together above it.
    peer.send_text(&(message(32_768) + &message(20_000) + &message(20_000))).await;
    for _ in 0..3 {
        assert_eq!(response(&peer.next().await.unwrap())[0], "HelloWorldVM");
        assert_eq!(peer.next().await.unwrap()["type"], 3);
    }
    peer.send_text(&(message(200) + &message(32_769))).await;
    let rest = peer.rest().await;
    assert_eq!(rest.len(), 3, "what came before is still processed: {rest:?}");
    assert_eq!(rest[2], error_close());
    eventually("the connection is gone", || server.state().direct_clients == 0).await;
    assert_eq!(server.state().oversized, 1);

    // Without a separator in sight there is nothing to wait for.
    let mut peer = Peer::connect(&server).await;
    peer.send_text(&"x".repeat(32_769)).await;
    assert_eq!(peer.rest().await, [error_close()]);
}

#[tokio::test]
async fn malformed_messages_close_and_unknown_types_stall() {
    let server = server().await;
    let mut peer = Peer::connect(&server).await;
    peer.send_text("{\"type\":1,\"target\":\"Dispose_VM\",\"arguments\":[\"a\"],\"invocationId\":null}\u{1e}").await;
    assert_eq!(peer.rest().await, [error_close()]);
    assert_eq!(server.state().protocol_errors, 1);

    let mut stalled = Peer::connect(&server).await;
    stalled.send(json!({ "type": 99 })).await;
    stalled.send(json!({ "type": 1, "invocationId": "0", "target": "Dispose_VM", "arguments": ["a"] })).await;
    stalled.send_text(&"y".repeat(32_768)).await;
    assert_eq!(stalled.rest().await, [error_close()], "nothing behind the unknown message is processed");

    let mut polite = Peer::connect(&server).await;
    polite.send(json!({ "type": 7 })).await;
    assert_eq!(polite.rest().await, [json!({ "type": 7 })]);
}

#[tokio::test]
async fn a_graceful_stop_lets_everybody_reconnect() {
    let server = server().await;
    let (addr, mut client, mut lane) = (server.local_addr, Peer::connect(&server).await, Peer::connect(&server).await);
    lane.request("HelloWorldVM", quiet(), "a", "h").await;
    server.shutdown().await;
    assert_eq!(client.rest().await, [json!({ "type": 7, "allowReconnect": true })]);
    assert_eq!(lane.rest().await, [json!({ "type": 7, "allowReconnect": true })]);
    // The address is free for a restart.
    let again = app::bind(addr, AppOptions::default()).await.expect("the same address");
    let mut client = Peer::connect(&again).await;
    again.kill().await;
    assert_eq!(client.rest().await, [] as [Value; 0], "a crash says nothing");
}

// ---- direct clients ----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn hello_world_sends_only_what_changed() {
    let server = server().await;
    let mut client = Peer::connect(&server).await;
    let state = client.call("Request_VM", json!(["HelloWorldVM", quiet()])).await;
    assert_eq!(state.len(), 1);
    assert_eq!(state[0][0], "HelloWorldVM");
    let mut shown = data(&state[0]);
    shown.as_object_mut().unwrap().remove("ServerTime");
    assert_eq!(
        shown,
        json!({ "FirstName": "Hello", "LastName": "World", "FullName": "Hello World", "Greetings": "Hello World!" })
    );

    let news = client.call("Update_VM", json!(["HelloWorldVM", { "FirstName": "Jo" }])).await;
    assert_eq!(
        data(&news[0]),
        json!({ "FullName": "Jo World", "Greetings": "Jo World!" }),
        "not what the client set itself"
    );
    // Keys apply in order, and a later one of the same name wins.
    client.send_text("{\"type\":1,\"target\":\"Update_VM\",\"arguments\":[\"HelloWorldVM\",{\"LastName\":\"b\",\"FirstName\":\"z\",\"LastName\":\"a\"}]}\u{1e}").await;
    assert_eq!(data(&client.pushed().await)["FullName"], "z a");
    // Headers alone change nothing; null is ignored; unknown properties too.
    for vm_data in [json!({ "$headers": { "a": 1 } }), json!(null), json!({ "Nope": 1 })] {
        assert!(client.call("Update_VM", json!(["HelloWorldVM", vm_data])).await.is_empty());
    }
    // Requesting again sends the state and ignores the argument.
    let again = client.call("Request_VM", json!(["HelloWorldVM", { "$vmArg": { "FirstName": "No" } }])).await;
    assert_eq!(data(&again[0])["FullName"], "z a");
    assert_eq!(server.state().view_models, 1);
    client.call("Dispose_VM", json!(["HelloWorldVM"])).await;
    assert_eq!(server.state().view_models, 0);
}

#[tokio::test]
async fn server_time_is_pushed() {
    let server = server().await;
    let mut client = Peer::connect(&server).await;
    client.call("Request_VM", json!(["HelloWorldVM", { "$vmArg": { "TickInterval": "10" } }])).await;
    let pushes = [client.pushed().await, client.pushed().await];
    for push in pushes {
        let push = data(&push);
        assert_eq!(push.as_object().unwrap().keys().collect::<Vec<_>>(), ["ServerTime"]);
    }
}

#[tokio::test]
async fn exceptions_are_responses() {
    let server = server().await;
    let mut client = Peer::connect(&server).await;
    let unknown = client.call("Request_VM", json!(["Page.NoSuchVM$1", {}])).await;
    assert_eq!(
        data(&unknown[0]),
        json!({ "ExceptionType": "Exception", "Message": "[dotNetify] ERROR: 'Page' is not a known view model! Its assembly must be registered through VMController.RegisterAssembly." }),
        "the master is created first"
    );
    let unknown = client.call("Request_VM", json!(["NoSuchVM$1", {}])).await;
    assert_eq!(unknown[0][0], "NoSuchVM$1");
    assert!(data(&unknown[0])["Message"].as_str().unwrap().contains("'NoSuchVM$1' is not a known view model"));
    let faulty = client.call("Request_VM", json!(["FaultyVM", {}])).await;
    assert_eq!(data(&faulty[0])["ExceptionType"], "UnauthorizedAccessException");
    let thrown = client.call("Request_VM", json!(["HelloWorldVM", { "$vmArg": { "Throw": "no" } }])).await;
    assert_eq!(data(&thrown[0]), json!({ "ExceptionType": "UnauthorizedAccessException", "Message": "no" }));
    assert_eq!(server.state().view_models, 0);
    client.call("Request_VM", json!(["FaultyVM", { "$vmArg": { "Late": true } }])).await;
    let late = client.call("Update_VM", json!(["FaultyVM", { "Throw": "later" }])).await;
    assert_eq!(data(&late[0]), json!({ "ExceptionType": "InvalidOperationException", "Message": "later" }));
    assert_eq!(server.state().failed_invocations, 0, "exceptions of view models are no failed invocations");
}

#[tokio::test]
async fn instances_and_masters() {
    let server = server().await;
    let mut client = Peer::connect(&server).await;
    for vm_id in ["HelloWorldVM.HelloWorldVM$1", "HelloWorldVM.HelloWorldVM$2", "HelloWorldVMs"] {
        client.call("Request_VM", json!([vm_id, quiet()])).await;
    }
    assert_eq!(server.state().view_models, 3, "two and their master");
    client.call("Dispose_VM", json!(["HelloWorldVM"])).await;
    assert_eq!(server.state().view_models, 0);
}

#[tokio::test]
async fn binding_errors_complete_with_the_texts_of_the_reference() {
    let server = server().await;
    let mut client = Peer::connect(&server).await;
    for (target, arguments, expected) in [
        (
            "Nope",
            json!([]),
            "Failed to invoke 'Nope' due to an error on the server. HubException: Method does not exist.",
        ),
        (
            "OnDisconnectedAsync",
            json!([null]),
            "Failed to invoke 'OnDisconnectedAsync' due to an error on the server. HubException: Method does not exist.",
        ),
        ("Update_VM", json!(["a"]), "Failed to invoke 'Update_VM' due to an error on the server."),
        ("Invoke", json!(["Dispose_VM", [], null]), "An unexpected error occurred invoking 'Invoke' on the server."),
    ] {
        let (responses, error) = client.try_call(target, arguments).await;
        assert_eq!((responses.len(), error.as_deref()), (0, Some(expected)));
    }
    assert_eq!(server.state().failed_invocations, 4);
    // Without an id nothing is answered.
    client.send(json!({ "type": 1, "target": "Nope", "arguments": [] })).await;
    assert!(client.call("Dispose_VM", json!(["a"])).await.is_empty());
}

#[tokio::test]
async fn direct_clients_get_group_and_user_sends_too() {
    let server = server().await;
    // {"sub":"u1"}, unsigned.
    let mut listed = Peer::connect_with(&server, "?access_token=e30.eyJzdWIiOiJ1MSJ9.x").await;
    let mut other = Peer::connect(&server).await;
    for client in [&mut listed, &mut other] {
        client.call("Request_VM", json!(["UserAlertVM", {}])).await;
        client.call("Request_VM", json!(["ChatRoomVM", { "$vmArg": { "ChatRoom": "R" } }])).await;
    }
    other.call("Update_VM", json!(["UserAlertVM", { "Alert": { "Users": ["u1"], "Text": "hi" } }])).await;
    assert_eq!(listed.pushed().await, json!(["UserAlertVM", "{\"Alert\":\"hi\"}"]));
    let own = other.call("Update_VM", json!(["ChatRoomVM", { "SendMessage": { "MessageId": "1" } }])).await;
    assert_eq!(own, [json!(["ChatRoomVM", "{\"Messages_add\":{\"MessageId\":\"1\"}}"])]);
    assert_eq!(listed.pushed().await, own[0]);
    drop(other);
    eventually("its real disconnect removes it", || server.state().controllers == 1).await;
    assert_eq!(server.state().view_models, 2);
    assert_eq!(server.state().lost_sends, 0);
}

// ---- lanes -------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn an_origin_id_is_bound_to_its_first_lane_for_good() {
    let server = server().await;
    let (mut one, mut two) = (Peer::connect(&server).await, Peer::connect(&server).await);
    let state = one.request("HelloWorldVM", quiet(), "a", "h1").await;
    assert_eq!(methods(&state), ["SendAsync"]);
    assert_eq!(sent(&state[0], "HelloWorldVM", "a")["FullName"], "Hello World");
    // Over the other lane, with another hub id: processed, and answered over the first.
    assert!(two.update("HelloWorldVM", json!({ "FirstName": "Jo" }), "a", "h2").await.is_empty());
    assert_eq!(sent(&one.pushed().await, "HelloWorldVM", "a")["FullName"], "Jo World");
    let bindings = server.bindings();
    assert_eq!(bindings.len(), 1);
    assert_eq!(bindings[0].hub_id.as_deref(), Some("h1"));
    assert_eq!(bindings[0].first_context, context("a", "h1"), "the first context is kept");
    assert_eq!(bindings[0].last_context, context("a", "h2"));
    let state = server.state();
    assert_eq!((state.lanes, state.direct_clients, state.invokes), (2, 0, 2));
    // Only its disconnect frees it.
    two.off("a", "h2").await;
    assert_eq!((server.state().bindings, server.state().controllers), (0, 0));
    two.off("a", "h2").await;
    assert_eq!((server.state().bindings, server.state().leaks), (0, 0), "harmless for an unknown id");
}

#[tokio::test]
async fn a_lost_lane_silences_its_clients_and_takes_its_last_one_along() {
    let server = server().await;
    let (mut one, mut two) = (Peer::connect(&server).await, Peer::connect(&server).await);
    one.request("HelloWorldVM", quiet(), "a", "h").await;
    one.request("HelloWorldVM", quiet(), "b", "h").await;
    two.request("HelloWorldVM", quiet(), "c", "h").await;
    drop(one);
    eventually("the innocent b is disconnected", || server.state().bindings == 2).await;
    let left: Vec<String> = server.bindings().into_iter().map(|binding| binding.connection_id).collect();
    assert_eq!(left, ["a", "c"]);
    // a's update is processed and its answer lost.
    assert!(two.update("HelloWorldVM", json!({ "FirstName": "Jo" }), "a", "h").await.is_empty());
    assert_eq!(server.state().lost_sends, 1);
    // b's is dropped, and brings back a controller and a binding that nobody will remove.
    assert!(two.update("HelloWorldVM", json!({ "FirstName": "Jo" }), "b", "h").await.is_empty());
    let state = server.state();
    assert_eq!((state.dropped_updates, state.leaks, state.bindings), (1, 1, 3));
}

#[tokio::test]
async fn cleared_items_spare_the_last_client() {
    let server = server().await;
    let mut lane = Peer::connect(&server).await;
    lane.request("HelloWorldVM", quiet(), "a", "h").await;
    lane.call("Invoke", json!(["Nothing", [], {}])).await;
    drop(lane);
    eventually("the lane is gone", || server.state().lanes == 0).await;
    let state = server.state();
    assert_eq!((state.bindings, state.controllers, state.unknown_methods), (1, 1, 1));
}

#[tokio::test]
async fn group_sends_go_once_per_hub_id_through_its_first_binding() {
    let server = server().await;
    let (mut one, mut two, mut three) =
        (Peer::connect(&server).await, Peer::connect(&server).await, Peer::connect(&server).await);
    let room = json!({ "$vmArg": { "ChatRoom": "R" } });
    let first = one.request("ChatRoomVM", room.clone(), "a", "h").await;
    assert_eq!(methods(&first), ["SendAsync", "AddToGroupAsync"], "first the state, then the group");
    assert_eq!(first[1], json!(["AddToGroupAsync", ["R"], { "$fwdConnId": "a" }]));
    two.request("ChatRoomVM", room.clone(), "b", "h").await;
    three.request("ChatRoomVM", room.clone(), "c", "g").await;
    assert_eq!(server.state().hub_ids, [Some("h".to_owned()), Some("g".to_owned())]);
    assert_eq!(server.state().shared_view_models, 1);

    let message = json!({ "SendMessage": { "MessageId": "1" } });
    // b's lane has the same hub id as a's, which is older: nothing for it.
    assert!(two.update("ChatRoomVM", message.clone(), "b", "h").await.is_empty());
    let expected = json!(["SendToGroupExceptAsync", ["R", "ChatRoomVM", "{\"Messages_add\":{\"MessageId\":\"1\"}}"], { "$fwdConnId": "[null]" }]);
    assert_eq!(one.pushed().await, expected);
    assert_eq!(three.pushed().await, expected);

    // The stale binding of a lost lane swallows all group traffic of its hub id.
    one.request("HelloWorldVM", quiet(), "z", "h").await;
    drop(one);
    eventually("the lane is gone", || server.state().lanes == 2).await;
    let lost = server.state().lost_sends;
    assert!(two.update("ChatRoomVM", message.clone(), "b", "h").await.is_empty());
    assert_eq!(three.pushed().await[0], "SendToGroupExceptAsync");
    assert_eq!(server.state().lost_sends, lost + 1);
    // Once a is disconnected, b's is the oldest.
    two.off("a", "h").await;
    assert_eq!(methods(&two.update("ChatRoomVM", message, "b", "h").await), ["SendToGroupExceptAsync"]);
}

#[tokio::test]
async fn ungrouped_multicasts_name_their_receivers_per_hub_id() {
    let server = server().await;
    let (mut one, mut two) = (Peer::connect(&server).await, Peer::connect(&server).await);
    let mut direct = Peer::connect(&server).await;
    one.request("ChatRoomVM", json!({}), "a", "h").await;
    two.request("ChatRoomVM", json!({}), "b", "g").await;
    one.request("ChatRoomVM", json!({}), "c", "h").await;
    direct.call("Request_VM", json!(["ChatRoomVM", {}])).await;
    let own = one.update("ChatRoomVM", json!({ "SendMessage": { "MessageId": "1" } }), "a", "h").await;
    let data = "{\"Messages_add\":{\"MessageId\":\"1\"}}";
    assert_eq!(own, [json!(["SendToManyAsync", ["ChatRoomVM", data], { "$fwdConnId": "[\"a\",\"c\"]" }])]);
    assert_eq!(two.pushed().await, json!(["SendToManyAsync", ["ChatRoomVM", data], { "$fwdConnId": "[\"b\"]" }]));
    assert_eq!(direct.pushed().await, json!(["ChatRoomVM", data]));
}

#[tokio::test]
async fn users_are_sent_twice() {
    let server = server().await;
    let mut lane = Peer::connect(&server).await;
    lane.request("UserAlertVM", json!({}), "a", "h").await;
    let own = lane.update("UserAlertVM", json!({ "Alert": { "Users": ["u1", "u2"], "Text": "x" } }), "a", "h").await;
    assert_eq!(
        own,
        [
            json!(["SendToUsersAsync", [["u1", "u2"], "UserAlertVM", "{\"Alert\":\"x\"}"], { "$fwdConnId": "[\"u1\",\"u2\"]" }])
        ]
    );
}

#[tokio::test]
async fn multicast_instances_live_as_long_as_their_members() {
    let server = server().await;
    let mut lane = Peer::connect(&server).await;
    let room = json!({ "$vmArg": { "ChatRoom": "R" } });
    lane.request("ChatRoomVM", room.clone(), "a", "h").await;
    lane.request("ChatRoomVM", room.clone(), "b", "h").await;
    lane.update("ChatRoomVM", json!({ "SendMessage": { "MessageId": "1" } }), "a", "h").await;
    let gone = lane.forward("Dispose_VM", json!(["ChatRoomVM"]), "a", "h").await;
    assert_eq!(gone, [json!(["RemoveFromGroupAsync", ["R"], { "$fwdConnId": "a" }])]);
    let again = lane.request("ChatRoomVM", room.clone(), "c", "h").await;
    assert_eq!(sent(&again[0], "ChatRoomVM", "c")["Messages"], json!([{ "MessageId": "1" }]));
    // On a disconnect the binding goes first: no removal arrives.
    assert!(lane.off("b", "h").await.is_empty());
    lane.off("c", "h").await;
    assert_eq!(server.state().shared_view_models, 0);
    let fresh = lane.request("ChatRoomVM", room, "d", "h").await;
    assert_eq!(sent(&fresh[0], "ChatRoomVM", "d")["Messages"], json!([]));
}

#[tokio::test]
async fn the_others_see_who_comes_and_goes() {
    let server = server().await;
    let (mut one, mut two) = (Peer::connect(&server).await, Peer::connect(&server).await);
    let named = |name: &str| json!({ "$vmArg": { "ChatRoom": "R", "Name": name } });
    let first = one.request("ChatRoomVM", named("Ann"), "a", "h1").await;
    assert_eq!(sent(&first[0], "ChatRoomVM", "a")["Users"], json!([{ "Id": "u1", "Name": "Ann" }]));
    let second = two.request("ChatRoomVM", named("Bob"), "b", "h2").await;
    assert_eq!(sent(&second[0], "ChatRoomVM", "b")["Users"].as_array().unwrap().len(), 2);
    assert_eq!(one.pushed().await[1][2], "{\"Users_add\":{\"Id\":\"u2\",\"Name\":\"Bob\"}}");
    two.off("b", "h2").await;
    assert_eq!(one.pushed().await[1][2], "{\"Users_remove\":\"u2\"}");
}

#[tokio::test]
async fn a_lane_is_sequential_and_others_go_on() {
    let server = server().await;
    let (mut slow, mut quick) = (Peer::connect(&server).await, Peer::connect(&server).await);
    let invoke = |id: &str, method: &str, arguments: Value, origin: &str| {
        let metadata = json!({ "$fwdConnContext": context(origin, "h") });
        format!(
            "{}\u{1e}",
            json!({ "type": 1, "invocationId": id, "target": "Invoke", "arguments": [method, arguments, metadata] })
        )
    };
    let delay = json!({ "$vmArg": { "Delay": 1500 } }).to_string();
    let begin = Instant::now();
    let both = invoke("1", "Request_VM", json!(["SlowVM", delay]), "a")
        + &invoke("2", "Request_VM", json!(["HelloWorldVM", QUIET_HELLO]), "b");
    slow.send_text(&both).await;
    eventually("the slow request is begun", || server.state().invokes == 1).await;
    assert_eq!(server.state().bindings, 1, "bound before its creation is done");
    quick.request("HelloWorldVM", quiet(), "c", "g").await;
    assert_eq!(server.state().invokes, 2, "another lane is not held up, and b waits behind a");
    let mut order = Vec::new();
    for _ in 0..4 {
        let record = slow.next().await.unwrap();
        order.push(if record["type"] == 3 {
            record["invocationId"].clone()
        } else {
            record["arguments"][0][2]["$fwdConnId"].clone()
        });
    }
    assert_eq!(order, ["a", "1", "b", "2"]);
    assert!(begin.elapsed() >= Duration::from_millis(1500));
    let begin = Instant::now();
    let done = slow.update("SlowVM", json!({ "Work": 50 }), "a", "h").await;
    assert!(begin.elapsed() >= Duration::from_millis(50));
    assert_eq!(sent(&done[0], "SlowVM", "a"), json!({ "Done": 1 }));
}

#[tokio::test]
async fn a_request_that_outlives_its_client_leaks() {
    let server = server().await;
    let (mut slow, mut quick) = (Peer::connect(&server).await, Peer::connect(&server).await);
    let delay = json!({ "$vmArg": { "Delay": 200 } }).to_string();
    let metadata = json!({ "$fwdConnContext": context("a", "h") });
    slow.send(json!({ "type": 1, "invocationId": "1", "target": "Invoke", "arguments": ["Request_VM", ["SlowVM", delay], metadata] })).await;
    eventually("the slow request is begun", || server.state().invokes == 1).await;
    quick.off("a", "h").await;
    assert_eq!(slow.next().await.unwrap()["type"], 3, "its response finds no binding and no client");
    let state = server.state();
    assert_eq!((state.leaks, state.lost_sends, state.controllers), (1, 1, 1));
}

#[tokio::test]
async fn arguments_that_are_not_json_fail_the_invocation() {
    let server = server().await;
    let mut lane = Peer::connect(&server).await;
    let fwd = json!({ "$fwdConnContext": context("a", "h") });
    for (method, arguments) in [
        ("Request_VM", json!(["HelloWorldVM", "hello"])),
        ("Request_VM", json!(["HelloWorldVM", ""])),
        ("Request_VM", json!(["HelloWorldVM", "True"])),
        ("Update_VM", json!(["HelloWorldVM", "[1]"])),
        ("Dispose_VM", json!([])),
        ("Dispose_VM", json!(["a", "b"])),
        ("OnDisconnectedAsync", json!([])),
    ] {
        let (responses, error) = lane.try_call("Invoke", json!([method, arguments, fwd])).await;
        assert!(responses.is_empty());
        assert_eq!(error.as_deref(), Some("An unexpected error occurred invoking 'Invoke' on the server."));
    }
    let bad_context = json!({ "$fwdConnContext": "{\"ConnectionId\":\"a\",\"TimeStamp\":null}" });
    assert!(lane.try_call("Invoke", json!(["Dispose_VM", ["a"], bad_context])).await.1.is_some());
    let state = server.state();
    assert_eq!(
        (state.failed_invocations, state.invokes, state.bindings),
        (8, 8, 0),
        "a failed conversion touches nothing"
    );
    // What the original gets right, and the inline form of a JSON lane.
    for argument in [json!("\"hello\""), json!("true"), json!("5.10"), json!(null), json!({ "TickInterval": 0 })] {
        assert_eq!(lane.call("Invoke", json!(["Request_VM", ["HelloWorldVM", argument], fwd])).await.len(), 1);
    }
}

#[tokio::test]
async fn without_a_context_the_lane_is_the_client() {
    let server = server().await;
    let mut lane = Peer::connect(&server).await;
    let own = lane.call("Invoke", json!(["Request_VM", ["HelloWorldVM", QUIET_HELLO], null])).await;
    assert_eq!(own[0].as_array().unwrap().len(), 2, "a response to the lane itself: {own:?}");
    assert_eq!(server.state().bindings, 0);
}

/// The bytes are those of contract 2.4.
#[tokio::test]
async fn a_messagepack_lane_where_the_server_has_it() {
    let server = server_with(AppOptions { message_pack: true, ..AppOptions::default() }).await;
    let mut lane = Peer::raw(&server, "").await;
    lane.socket.send(Message::binary(b"{\"protocol\":\"messagepack\",\"version\":1}\x1e".to_vec())).await.unwrap();
    let answer = timeout(PATIENCE, lane.socket.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(answer, Message::binary(b"{}\x1e".to_vec()));
    let bytes = |hex: &str| -> Vec<u8> {
        hex.as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    };
    let request = bytes(
        "71960180c0a6496e766f6b6593aa526571756573745f564d92ac48656c6c6f576f726c64564db77b2224766d417267223a7b224e616d65223a2278227d7d81af24667764436f6e6e436f6e74657874d9207b224875624964223a2268222c22436f6e6e656374696f6e4964223a2263227d90",
    );
    // Split anywhere, as the byte stream it is.
    lane.socket.send(Message::binary(request[..50].to_vec())).await.unwrap();
    lane.socket.send(Message::binary(request[50..].to_vec())).await.unwrap();
    let state = timeout(PATIENCE, lane.socket.next()).await.unwrap().unwrap().unwrap().into_data();
    for part in [
        &b"\xabResponse_VM\x91\x93\xa9SendAsync\x92\xacHelloWorldVM"[..],
        b"\"FullName\":\"Hello World\"",
        b"\x81\xaa$fwdConnId\xa1c\x90",
    ] {
        assert!(state.windows(part.len()).any(|window| window == part), "{state:?}");
    }
    assert_eq!(server.state().hub_ids, [Some("h".to_owned())]);
    let off = bytes(
        "56960180c0a6496e766f6b6593b34f6e446973636f6e6e65637465644173796e6391c081af24667764436f6e6e436f6e74657874d9207b224875624964223a2268222c22436f6e6e656374696f6e4964223a2263227d90",
    );
    lane.socket.send(Message::binary(off)).await.unwrap();
    eventually("the client is disconnected", || server.state().bindings == 0).await;
}

// ---- the load tester's view models -------------------------------------------------------------------------------------

#[tokio::test]
async fn echo_waits_for_each_pong() {
    let server = server().await;
    let mut lane = Peer::connect(&server).await;
    lane.request("EchoVM", json!({ "$vmArg": { "PingInterval": "5" } }), "a", "h").await;
    let begin = Instant::now();
    for sequence in 1..=3 {
        let ping = sent(&lane.pushed().await, "EchoVM", "a")["Ping"].clone();
        assert_eq!((&ping["ConnectionId"], &ping["Sequence"]), (&json!("a"), &json!(sequence)));
        assert_eq!(ping["PrevLatency"].as_f64().unwrap() > 0.0, sequence > 1, "{ping}");
        lane.update("EchoVM", json!({ "Pong": ping }), "a", "h").await;
    }
    assert!(begin.elapsed() >= Duration::from_millis(900), "the first comes after 1000 ms whatever the interval");
}

#[tokio::test]
async fn shared_echo_answers_each_client_alone() {
    let server = server().await;
    let mut lane = Peer::connect(&server).await;
    for origin in ["a", "b"] {
        lane.request("SharedEchoVM", json!({ "$vmArg": { "PingInterval": "5" } }), origin, "h").await;
    }
    assert_eq!(server.state().shared_view_models, 1);
    lane.update("SharedEchoVM", json!({ "Pong": {} }), "b", "h").await;
    for sequence in 1..=2 {
        let push = lane.pushed().await;
        assert_eq!((&push[0], &push[2]), (&json!("SendToManyAsync"), &json!({ "$fwdConnId": "[\"b\"]" })));
        let ping = serde_json::from_str::<Value>(push[1][1].as_str().unwrap()).unwrap()["Ping"].clone();
        assert_eq!((&ping["ConnectionId"], &ping["Sequence"]), (&json!("b"), &json!(sequence)));
        lane.update("SharedEchoVM", json!({ "Pong": ping }), "b", "h").await;
    }
}

#[tokio::test]
async fn broadcast_ticks_for_the_group() {
    let server = server().await;
    let (mut lane, mut other) = (Peer::connect(&server).await, Peer::connect(&server).await);
    let joined = lane.request("BroadcastVM", json!({ "$vmArg": { "TickInterval": "10" } }), "a", "h").await;
    assert_eq!(joined[1], json!(["AddToGroupAsync", ["BroadcastVM"], { "$fwdConnId": "a" }]));
    other.request("BroadcastVM", json!({}), "b", "g").await;
    for peer in [&mut lane, &mut other] {
        for sequence in 1..=2 {
            let tick = peer.pushed().await;
            assert_eq!((&tick[0], &tick[2]), (&json!("SendToGroupExceptAsync"), &json!({ "$fwdConnId": "[null]" })));
            let tick: Value = serde_json::from_str(tick[1][2].as_str().unwrap()).unwrap();
            assert_eq!(tick["Tick"]["Sequence"], sequence);
        }
    }
}

// ---- introspection and size --------------------------------------------------------------------------------------------

#[tokio::test]
async fn the_double_shows_itself() {
    let server = server().await;
    let mut lane = Peer::connect(&server).await;
    lane.request("HelloWorldVM", quiet(), "a", "h").await;
    let shown: app::Snapshot =
        serde_json::from_value(body(&http(&server, "GET /__double HTTP/1.1\r\n").await)).unwrap();
    assert_eq!(shown, server.state());
    assert_eq!(shown.hub_ids, [Some("h".to_owned())]);
    let bindings: Vec<app::BindingSnapshot> =
        serde_json::from_value(body(&http(&server, "GET /__double/bindings HTTP/1.1\r\n").await)).unwrap();
    assert_eq!(bindings, server.bindings());
    let lane_id = bindings[0].lane.clone();
    assert!(bindings[0].lane_alive);
    assert!(server.cut(&lane_id));
    assert!(lane.rest().await.is_empty());
    eventually("the cut lane's last client is disconnected", || server.state().bindings == 0).await;
    assert_eq!(server.state().slow_connections, 0);
}

#[tokio::test]
async fn one_view_model_or_one_lane_can_be_made_slow() {
    const HELD_UP: Duration = Duration::from_millis(300);
    let server = server().await;
    let (mut one, mut two) = (Peer::connect(&server).await, Peer::connect(&server).await);
    one.request("HelloWorldVM", quiet(), "a", "h").await;
    two.request("HelloWorldVM", quiet(), "b", "g").await;
    let lane = server.bindings()[0].lane.clone();
    for (slow, first_is_slow, second_is_slow) in [
        (json!({ "vm_id": "HelloWorldVM", "ms": 300 }), true, true),
        (json!({ "vm_id": "HelloWorldVM", "ms": 0 }), false, false),
        (json!({ "vm_id": "EchoVM", "lane": lane, "ms": 300 }), false, false),
        (json!({ "lane": lane, "ms": 300 }), true, false),
    ] {
        assert!(hook(&server, "slow", slow.clone()).await.starts_with("HTTP/1.1 200"), "{slow}");
        for (peer, id, is_slow) in [(&mut one, "a", first_is_slow), (&mut two, "b", second_is_slow)] {
            let begin = Instant::now();
            peer.update("HelloWorldVM", json!({ "FirstName": "x" }), id, "any").await;
            assert_eq!(begin.elapsed() >= HELD_UP, is_slow, "{slow} {id}");
        }
    }
    assert!(hook(&server, "slow", json!({ "vmid": "typing error", "ms": 1 })).await.starts_with("HTTP/1.1 422"));
}

#[tokio::test]
async fn it_can_refuse_newcomers_and_lose_a_lane() {
    let server = server().await;
    let mut lane = Peer::connect(&server).await;
    lane.request("HelloWorldVM", quiet(), "a", "h").await;
    assert!(hook(&server, "refuse", json!({ "refuse": true })).await.starts_with("HTTP/1.1 200"));
    let negotiate = "POST /dotnetify/negotiate?negotiateVersion=1 HTTP/1.1\r\n";
    assert!(http(&server, negotiate).await.starts_with("HTTP/1.1 503"));
    let url = format!("ws://{}/dotnetify", server.local_addr);
    assert!(tokio_tungstenite::connect_async(url).await.is_err());
    assert_eq!(lane.request("HelloWorldVM", quiet(), "b", "h").await.len(), 1, "who is there is served");
    server.refuse(false);
    assert!(http(&server, negotiate).await.starts_with("HTTP/1.1 200"));

    let id = server.bindings()[0].lane.clone();
    assert!(hook(&server, "close", json!({ "lane": id })).await.starts_with("HTTP/1.1 200"));
    assert!(lane.rest().await.is_empty());
    eventually("the lane's last client is taken along", || server.state().bindings == 1).await;
    assert!(hook(&server, "close", json!({ "lane": id })).await.starts_with("HTTP/1.1 404"));
}

/// How a socket ends, seen by its peer.
async fn end_of(peer: &mut Peer) -> String {
    loop {
        match timeout(PATIENCE, peer.socket.next()).await.expect("an end within ten seconds") {
            Some(Ok(Message::Close(_))) => return "close".into(),
            Some(Ok(Message::Text(text))) if text.contains("\"type\":7") => return text.as_str().into(),
            Some(Ok(_)) => {}
            Some(Err(error)) => return error.to_string(),
            None => return "nothing".into(),
        }
    }
}

#[tokio::test]
async fn lanes_are_listed_and_end_in_three_ways() {
    let server = server().await;
    for (how, end) in
        [("reset", "Connection reset by peer"), ("goodbye", r#"{"type":7,"allowReconnect":true}"#), ("cut", "close")]
    {
        let (mut lost, mut other) = (Peer::connect(&server).await, Peer::connect(&server).await);
        lost.request("HelloWorldVM", quiet(), &format!("{how}1"), "h").await;
        lost.request("HelloWorldVM", quiet(), &format!("{how}2"), "h").await;
        other.request("HelloWorldVM", quiet(), &format!("{how}3"), "g").await;
        let shown = body(&http(&server, "GET /__double/lanes HTTP/1.1\r\n").await);
        let lanes: Vec<app::LaneSnapshot> = serde_json::from_value(shown).unwrap();
        assert_eq!(lanes, server.lanes());
        let lane = lanes.iter().find(|lane| lane.clients.len() == 2).expect("the one with two clients");
        assert_eq!((lane.alive, lane.hub_ids.as_slice()), (true, &[Some("h".to_owned())][..]));

        assert!(hook(&server, "close", json!({ "lane": lane.lane, "how": how })).await.starts_with("HTTP/1.1 200"));
        let seen = end_of(&mut lost).await;
        assert!(seen.contains(end), "{how}: {seen}");
        // The last one's client goes with it (contract 4.4), the first one's binding stays.
        eventually("the lane's end", || server.lanes().iter().any(|lane| !lane.alive && lane.clients.len() == 1)).await;
        assert_eq!(server.close(&app::Close { lane: None, how: app::How::Reset }), 1, "all lanes that there are");
        end_of(&mut other).await;
        eventually("the other lane's end", || server.state().lanes == 0).await;
        let mut after = Peer::connect(&server).await;
        for left in ["1", "2", "3"] {
            after.off(&format!("{how}{left}"), "h").await;
        }
        assert_eq!(server.state().bindings, 0);
        drop(after);
        eventually("the last lane's end", || server.state().lanes == 0).await;
    }
}

#[tokio::test]
async fn a_frozen_lane_is_noticed_late_and_takes_its_last_client_along() {
    const LATE: Duration = Duration::from_millis(400);
    let server = server_with(AppOptions { keep_alive: Duration::from_millis(50), ..AppOptions::default() }).await;
    let mut lane = Peer::connect(&server).await;
    lane.request("HelloWorldVM", quiet(), "a", "h").await;
    lane.request("HelloWorldVM", quiet(), "b", "h").await;
    let id = server.bindings()[0].lane.clone();
    let begin = Instant::now();
    let freeze = json!({ "lane": id, "notice_ms": LATE.as_millis() as u64 });
    assert!(hook(&server, "freeze", freeze).await.starts_with("HTTP/1.1 200"));
    // A ping may have been under way; then there is silence, although this is sent and would be answered.
    let update = json!(["Update_VM", ["HelloWorldVM", "{}"], { "$fwdConnContext": context("a", "h") }]);
    lane.send(json!({ "type": 1, "invocationId": "x", "target": "Invoke", "arguments": update })).await;
    while timeout(LATE / 4, lane.socket.next()).await.is_ok() {}
    assert_eq!((server.state().invokes, server.state().lanes, server.state().bindings), (2, 1, 2));
    assert!(begin.elapsed() < LATE, "the machine is too busy for this test: {:?}", begin.elapsed());

    assert!(end_of(&mut lane).await.contains("reset"));
    eventually("the late end", || server.state().lanes == 0).await;
    assert!(begin.elapsed() >= LATE);
    assert_eq!(server.bindings()[0].connection_id, "a", "the last message that was processed was b's");
    assert_eq!((server.state().bindings, server.state().leaks), (1, 0));
}

#[tokio::test]
async fn a_stuck_lane_keeps_pinging_and_goes_on_when_it_is_let_go() {
    let server = server_with(AppOptions { keep_alive: Duration::from_millis(20), ..AppOptions::default() }).await;
    let (mut stuck, mut other) = (Peer::connect(&server).await, Peer::connect(&server).await);
    stuck.request("BurstVM", json!({}), "a", "h").await;
    other.request("BurstVM", json!({}), "b", "g").await;
    let id = server.bindings()[0].lane.clone();
    assert!(hook(&server, "hold", json!({ "lane": id, "hold": true })).await.starts_with("HTTP/1.1 200"));
    let update = json!(["Update_VM", ["BurstVM", "{\"Send\":1}"], { "$fwdConnContext": context("a", "h") }]);
    stuck.send(json!({ "type": 1, "invocationId": "1", "target": "Invoke", "arguments": update })).await;
    for _ in 0..5 {
        let text = timeout(PATIENCE, stuck.socket.next()).await.unwrap().unwrap().unwrap().into_text().unwrap();
        assert_eq!(text.as_str(), "{\"type\":6}\u{1e}");
    }
    assert_eq!(other.update("BurstVM", json!({ "Send": 1 }), "b", "g").await.len(), 1, "others are not held up");

    assert!(hook(&server, "hold", json!({ "hold": false })).await.starts_with("HTTP/1.1 200"));
    assert_eq!(sent(&stuck.pushed().await, "BurstVM", "a"), json!({ "Echo": 1 }));
    assert_eq!(stuck.next().await.expect("the completion")["type"], 3);
    assert!(hook(&server, "hold", json!({ "hold": false })).await.starts_with("HTTP/1.1 404"), "nobody is held");
}

#[tokio::test]
async fn invocations_can_be_made_to_fail() {
    let server = server().await;
    let mut lane = Peer::connect(&server).await;
    assert!(hook(&server, "fail", json!({ "vm_id": "BurstVM", "times": 1 })).await.starts_with("HTTP/1.1 200"));
    let call = json!(["Request_VM", ["BurstVM", null], { "$fwdConnContext": context("a", "h") }]);
    let (responses, error) = lane.try_call("Invoke", call.clone()).await;
    assert_eq!(error.as_deref(), Some("An unexpected error occurred invoking 'Invoke' on the server."));
    assert_eq!((responses.len(), server.state().bindings), (0, 0), "as where an argument cannot be converted");
    let states = lane.call("Invoke", call.clone()).await;
    assert_eq!(sent(&states[0], "BurstVM", "a"), json!({ "ConnectionId": "a", "Echo": null }));
    assert_eq!((server.state().failed_invocations, server.state().repeated_requests), (1, 0));
    lane.call("Invoke", call).await;
    assert_eq!(server.state().repeated_requests, 1);
}

#[tokio::test]
async fn an_observer_records_and_never_answers() {
    let server = server_with(AppOptions { observer: true, ..AppOptions::default() }).await;
    assert!(
        app::bind(SocketAddr::from(([127, 0, 0, 1], 0)), AppOptions::default()).await.unwrap().observed().is_none()
    );
    let mut lane = Peer::connect(&server).await;
    assert!(lane.request("HelloWorldVM", quiet(), "a", "h").await.is_empty());
    assert!(lane.request("No such view model", quiet(), "b", "h").await.is_empty());
    let usage = json!({ "proc_cpu": 1.25, "total_cpu": 10.5, "proc_mem": 85.31, "total_mem": null });
    assert!(lane.call("Invoke", json!(["ReceiveTelemetry", [usage], { "HubId": "h" }])).await.is_empty());
    assert!(lane.off("b", "h").await.is_empty());
    lane.request("HelloWorldVM", quiet(), "b", "h").await;

    let shown = body(&http(&server, "GET /__double/observer HTTP/1.1\r\n").await);
    let seen: app::ObserverSnapshot = serde_json::from_value(shown).unwrap();
    assert_eq!(seen, server.observed().unwrap());
    let hub = &seen.hubs["h"];
    assert_eq!((hub.reports, hub.clients, hub.label.as_deref()), (1, 1, Some("proxy:5000")));
    assert_eq!(serde_json::from_str::<Value>(&hub.telemetry).unwrap(), usage);
    assert_eq!((seen.disconnects, seen.ignored, seen.stale, seen.faults), (1, 1, 0, 0));
    assert_eq!(seen.clients["a"].last_vm_id.as_deref(), Some("HelloWorldVM"));
    assert_eq!((server.state().bindings, server.state().view_models, server.state().leaks), (0, 0, 0));

    // A dashboard is a client like any other.
    let mut dashboard = Peer::connect(&server).await;
    assert_eq!(dashboard.call("Request_VM", json!(["HelloWorldVM", quiet()])).await.len(), 1);

    // b's message was the lane's last; it is gone already. With a as the last, a goes, innocent.
    let context = context("a", "h").replace("07:08:09", "07:08:10");
    lane.call("Invoke", json!(["Dispose_VM", ["HelloWorldVM"], { "$fwdConnContext": context }])).await;
    drop(lane);
    eventually("the end of the lane", || server.observed().unwrap().innocents == 1).await;
    assert!(server.observed().unwrap().clients["a"].gone);
}

#[tokio::test]
async fn ten_thousand_clients_on_five_lanes() {
    const CLIENTS: usize = 10_000;
    const LANES: usize = 5;
    let server = server().await;
    let mut lanes = Vec::new();
    for lane in 0..LANES {
        let mut peer = Peer::connect(&server).await;
        lanes.push(tokio::spawn(async move {
            for client in (lane..CLIENTS).step_by(LANES) {
                let context = context(&format!("client{client}"), &format!("hub{lane}"));
                for argument in [("HelloWorldVM", QUIET_HELLO), ("ChatRoomVM", r#"{"$vmArg":{"ChatRoom":"R"}}"#)] {
                    let arguments = json!(["Request_VM", [argument.0, argument.1], { "$fwdConnContext": context }]);
                    peer.send(json!({ "type": 1, "target": "Invoke", "arguments": arguments })).await;
                }
            }
            // Two states and a group for each.
            for _ in 0..CLIENTS / LANES * 3 {
                peer.pushed().await;
            }
            peer
        }));
    }
    let mut peers = Vec::new();
    for lane in lanes {
        peers.push(lane.await.unwrap());
    }
    let state = server.state();
    assert_eq!((state.bindings, state.controllers, state.view_models), (CLIENTS, CLIENTS, 2 * CLIENTS));
    assert_eq!((state.shared_view_models, state.lanes, state.lost_sends), (1, LANES, 0));
    peers[0].update("ChatRoomVM", json!({ "SendMessage": { "MessageId": "1" } }), "client0", "hub0").await;
    for peer in &mut peers[1..] {
        assert_eq!(peer.pushed().await[0], "SendToGroupExceptAsync");
    }
}
