//! Every bound of the gateway, with its unit, in one place.
//!
//! A bound that an operator may change is a configuration key whose default stands here; a bound that only protects the code
//! from itself is used from here directly. What happens at each limit is said beside it. This file knows nothing else of the
//! gateway: it is at the bottom of the import order, with `error`.

/// Request head (request line and fields); over it: 431.
pub const HEAD_BYTES_MAX: usize = 4 * 1024;
/// Request target; over it: 414.
pub const TARGET_BYTES_MAX: usize = 2 * 1024;
/// Fields in one head; over it: 431.
pub const HEAD_FIELDS_MAX: usize = 96;
/// One message; over it: 413.
pub const MESSAGE_BYTES_MAX: usize = 512 * 1024;
/// Partition key after percent-decoding; over it: 400.
pub const KEY_BYTES_MAX: usize = 256;
/// `X-Tag`; over it: 400.
pub const TAG_BYTES_MAX: usize = 1024;
/// Messages of one answer or one batch; over it: 400.
pub const BATCH_MESSAGES_MAX: usize = 4_000;
/// Bytes of one answer or one batch: an answer stops filling here, a batch request is 413.
pub const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// What a batch that is published while it arrives may have under way; over it its body is not read further.
pub const BATCH_UNDER_WAY_BYTES_MAX: usize = 1024 * 1024;
/// A JSON array is checked in runs of its elements, each a little longer than this; between two the core does something else.
pub const BATCH_RUN_BYTES: usize = 64 * 1024;
/// Record headers of one message of a batch, names and values; over it the message is refused.
pub const RECORD_HEADERS_BYTES_MAX: usize = 32 * 1024;
/// Record headers of one message of a batch; over it the message is refused.
pub const RECORD_HEADERS_MAX: usize = 100;
/// A shorter message of a batch is copied out of its body, which would else be kept as long as the message is; so is one of a WebSocket
/// that would keep more than it is counted for.
pub const COPIED_BYTES_MAX: usize = 4 * 1024;
/// One piece of a body that is used while it arrives.
pub const BODY_PIECE_BYTES: usize = 64 * 1024;
/// What one step of compressing or decompressing takes or gives; between two the core does something else.
pub const CODING_STEP_BYTES: usize = 64 * 1024;
/// What one step of decompressing takes in.
pub const CODING_INPUT_BYTES: usize = 16 * 1024;
/// A gzip body that says it becomes no more is decompressed once; a longer one a first time for its length, and again when that is allowed.
/// A zstd body that becomes no more is decompressed in one step; a longer one in several.
pub const INFLATED_AT_ONCE_BYTES_MAX: usize = MESSAGE_BYTES_MAX;
/// Frames and blocks of a zstd body that is decompressed in one step; one of more takes several.
pub const INFLATED_AT_ONCE_PARTS_MAX: usize = 128;
/// Answers a core compresses at a time (a stream as long as it lasts); over it they go as they are.
pub const ENCODERS_MAX: usize = 1_000;
/// `Idempotency-Key`; over it: 400.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Keyed publishes one core remembers; over it the oldest that has finished is forgotten, counted.
pub const IDEMPOTENCY_KEYS_MAX: usize = 100_000;
/// Bytes of what one core remembers of them; over it the same.
pub const IDEMPOTENCY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Longest long poll; a larger `wait` is 400.
pub const WAIT_S_MAX: u64 = 30;
/// `appid`, `topic` and `group`; over it: 400.
pub const NAME_BYTES_MAX: usize = 64;
/// Kafka's own limit on a topic name.
pub const KAFKA_TOPIC_BYTES_MAX: usize = 249;
/// Echoed `X-Request-Id`; a longer one is replaced by one of ours.
pub const REQUEST_ID_BYTES_MAX: usize = 128;

/// Read buffer a connection starts with: a head and a 1 KiB message fit with one `recv`.
pub const READ_BUFFER_BYTES: usize = 8 * 1024;
/// Requests of one HTTP/1.1 connection that a core answers before it looks at others: a client that pipelines may never let it wait.
pub const REQUESTS_IN_A_ROW_MAX: usize = 64;
/// Answer bytes gathered before the socket is written: one `send` for most answers.
pub const WRITE_CHUNK_BYTES: usize = 64 * 1024;
/// What is read and dropped of a refused body so that the refusal stays readable; then the connection closes.
pub const REFUSED_BODY_BYTES_MAX: usize = 1024 * 1024;
/// How long a refused body is read and dropped.
pub const REFUSED_BODY_MS_MAX: u64 = 2_000;
/// What may come before HTTP, a PROXY header and a TLS handshake together; over it the connection is closed.
pub const PREFACE_MS_MAX: u64 = 5_000;
/// TLS sessions kept for clients without tickets; a further one takes the place of another, which then cannot be resumed.
pub const TLS_SESSIONS_MAX: usize = 4_096;

/// What an HTTP/2 client may send within a second; over it the connection ends (GOAWAY, ENHANCE_YOUR_CALM) and is counted by kind.
/// RST_STREAM; those of ours that the client provoked by breaking a rule count with them.
pub const H2_RESETS_MAX: u32 = 100;
/// The same over the whole life of a connection.
pub const H2_RESETS_TOTAL_MAX: u32 = 10_000;
pub const H2_PINGS_MAX: u32 = 100;
pub const H2_SETTINGS_MAX: u32 = 50;
/// DATA without a byte that does not end its stream.
pub const H2_EMPTY_DATA_MAX: u32 = 100;
/// WINDOW_UPDATE, beside two for each DATA frame sent to the client.
pub const H2_WINDOW_UPDATES_MAX: u32 = 1_000;
/// PRIORITY and kinds unknown to RFC 9113, which are ignored.
pub const H2_OTHERS_MAX: u32 = 1_000;
/// CONTINUATION frames of one header block, however long that takes.
pub const H2_CONTINUATIONS_MAX: u32 = 20;

/// What a WebSocket reads at a time; an idle one keeps so much.
pub const WS_READ_BUFFER_BYTES: usize = 16 * 1024;
/// How often it is looked at whether a message that was begun on a WebSocket goes on, with a ping.
pub const WS_PACE_MS: u64 = 20_000;
/// What one WebSocket reads before its core looks at others: some ten thousand of the smallest frames.
pub const WS_READ_AT_ONCE_BYTES: usize = 64 * 1024;
/// Messages of one WebSocket that wait for their reports; over it its socket is not read.
pub const WS_UNDER_WAY_MAX: usize = 20_000;
/// Bytes of them, as they came over the wire: a small message may keep the buffer it was read into.
pub const WS_UNDER_WAY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of all WebSockets of one core; over it only those are read that have nothing under way.
pub const WS_CORE_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// What an envelope may hold beside its message.
pub const WS_ENVELOPE_BYTES_MAX: usize = 64 * 1024;
/// Messages stored on a WebSocket that are acknowledged at once at the latest.
pub const WS_ACK_MESSAGES_MAX: u64 = 1_000;
/// How long an acknowledgement may wait for others to share its frame with.
pub const WS_ACK_MS_MAX: u64 = 2;
/// A message of the echo: as large as the largest of Autobahn's test cases.
pub const WS_ECHO_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Items a loop handles before it yields the core (glommio polls sockets only between tasks).
pub const LOOP_ITEMS_MAX: usize = 256;
/// Frames waiting in one core's mesh inbox; over it the sender is refused and counts it.
pub const MESH_FRAMES_MAX: usize = 8 * 1024;
/// Jobs waiting for the offload pool; over it: 503.
pub const OFFLOAD_JOBS_MAX: usize = 1024;
/// Threads of the offload pool, besides [`OFFLOAD_THREADS_PER_CORE`].
pub const OFFLOAD_THREADS: usize = 4;
/// What a core may hold for seconds at a time: one to probe a cluster that is away or to look at a group, one to dial another gateway.
pub const OFFLOAD_THREADS_PER_CORE: usize = 2;
/// Questions who reads a topic that a core answers at a time; further ones wait. Each asks for several groups at once.
pub const STATUS_RUNNING_MAX: usize = 1;
/// Gateways a core dials at a time; further ones wait.
pub const DIALS_RUNNING_MAX: usize = 1;

/// Messages delivered but not yet part of the contiguous acknowledged run, per partition; over it the partition waits.
pub const LEASES_MAX: usize = 10_000;
/// Groups of one core whose members are remembered; over it they are looked up again.
pub const GROUP_LOOKS_MAX: usize = 2_000;
/// Reads one core has forwarded to other gateways at a time; over it they wait for what is owned here, or for room.
pub const PEER_READS_MAX: usize = 200;
/// Bytes one of them gives, or one message: what other gateways' messages may take of a core's memory, which its budget does not count.
pub const PEER_READ_BYTES_MAX: usize = 1024 * 1024;
/// What one gateway asks of another, beside the body of a message that is buried; over it: 413.
pub const PEER_ASK_BYTES_MAX: usize = 512 * 1024;
/// Other gateways a core knows at a time; over it further ones cannot be asked.
pub const PEERS_MAX: usize = 256;
/// Looks at the members of groups under way for each core; further ones wait. Each asks every broker.
pub const GROUP_LOOKS_RUNNING_MAX: usize = 1;
/// What it is answered: a batch, and what stands around its messages. One message alone may be larger than a batch.
pub const PEER_ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Body of an acknowledgement: as many offsets as a batch has messages.
pub const ACK_BODY_BYTES_MAX: usize = 256 * 1024;
/// Messages one peek gives; over it: 400.
pub const PEEK_MESSAGES_MAX: usize = 1_000;
/// Groups one question who reads a topic looks at; how many further ones are not shown is said in the answer (`X-Groups-Omitted`).
pub const STATUS_GROUPS_MAX: usize = 200;
/// Clients waiting on one group of one core; over it: 429.
pub const GROUP_WAITERS_MAX: usize = 16 * 1024;
/// Moves that wait for one group; over it: 503.
pub const SEEKS_MAX: usize = 16;
/// Looks into topics without a group, for each core at a time; over it: 503. Each is a Kafka client for some seconds.
pub const PEEKS_MAX: usize = 2;
/// How long such a look waits for messages.
pub const PEEK_MS_MAX: u64 = 3_000;
/// Groups of a cluster that one listing names, those first that read the topic it is made for; the rest is left out, and the log says so.
pub const GROUPS_LISTED_MAX: usize = 10_000;
/// Topics a core keeps handles for; over it: 503 for topics not yet used.
pub const TOPICS_MAX: usize = 20_000;
/// Listening sockets in one message to a successor; the kernel takes 253.
pub const TAKEOVER_SOCKETS_PER_MESSAGE: usize = 64;
/// Such a message: what each socket serves takes some hundred bytes.
pub const TAKEOVER_MESSAGE_BYTES_MAX: usize = 64 * 1024;

const _: () = assert!(READ_BUFFER_BYTES >= HEAD_BYTES_MAX + 1024);
const _: () = assert!(TARGET_BYTES_MAX < HEAD_BYTES_MAX);
const _: () = assert!(MESSAGE_BYTES_MAX <= BATCH_BYTES_MAX);
const _: () = assert!(KEY_BYTES_MAX <= TARGET_BYTES_MAX);
const _: () = assert!(LEASES_MAX >= BATCH_MESSAGES_MAX);
