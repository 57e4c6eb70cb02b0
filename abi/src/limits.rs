//! Every limit of the system: its one home, with a name and a unit. Hitting one is an error that names it.

/// Nodes of one DVS.
pub const NODES_MAX: u16 = 1024;
/// Distributed containers of one DVS.
pub const DCS_MAX: u16 = 1024;
/// Users besides its daemons' own that one DC lets in.
pub const UIDS_PER_DC_MAX: usize = 1024;
/// Words of all rules of a DC: a rule is one, and one to four more for each thing that it names.
pub const RULE_WORDS_PER_DC_MAX: usize = 1984;
/// The file in which a daemon writes down the DCs that differ from the cluster file: each word 17 bytes of text.
pub const DCS_FILE_BYTES_MAX: u64 = 80 << 20;
/// A log that is longer than this is put aside, in place of the one that was put aside before.
pub const LOG_BYTES_MAX: u64 = 4 << 20;
/// Slots of one DC.
pub const SLOTS_PER_DC: u16 = 4096;
/// Proxies of one node; their doorbells follow those of the slots.
pub const PROXIES_PER_NODE_MAX: u16 = 64;

/// A message slot on its lane, header and body.
pub const SLOT_BYTES: usize = 128;
/// The header of a slot.
pub const SLOT_HEADER_BYTES: usize = 32;
/// What travels in the slot itself.
pub const INLINE_BYTES_MAX: usize = 96;
/// An extent's descriptor takes this much of the inline body.
pub const DESCRIPTOR_BYTES: usize = 24;
/// What travels inline beside an extent.
pub const INLINE_BYTES_WITH_EXTENT_MAX: usize = INLINE_BYTES_MAX - DESCRIPTOR_BYTES;

/// Slots of one lane, a power of two. The model checker gets a lane that wraps at once.
pub const LANE_SLOTS: u64 = if cfg!(loom) { 2 } else { 256 };
/// Every so many slots the receiver tells a sender that sleeps for room.
pub const ROOM_TOLD_EVERY_SLOTS: u64 = if cfg!(loom) { 1 } else { LANE_SLOTS / 4 };
/// Entries of a reply ring.
pub const REPLY_SLOTS: u64 = 2;
/// So often a client tells every peer how far its calls have come.
pub const CALLS_KNOWN_EVERY: u64 = 1 << 28;
/// Extents that one endpoint may have out with one peer: the entries of the peer's return ring.
pub const EXTENTS_PER_PAIR_MAX: u64 = 256;
/// Bytes that one endpoint may have out with one peer in extents.
pub const EXTENT_BYTES_PER_PAIR_MAX: u64 = 1 << 30;
/// Notification bits of one source; the next one is the wake-up.
pub const NOTIFY_BITS: usize = 32;

/// The smallest class of a pool.
pub const LOAN_BYTES_MIN: u32 = 64;
/// The largest loan.
pub const LOAN_BYTES_MAX: u32 = 1 << 30;
/// The pool that every endpoint has from its bind on.
pub const POOL_BYTES_FIRST: u64 = 256 << 10;
/// All pool segments of one endpoint together.
pub const POOL_BYTES_MAX: u64 = 4 << 30;
/// The smallest pool segment that is added when a loan finds no room.
pub const POOL_SEGMENT_BYTES_MIN: u64 = 4 << 20;
/// Pool of a proxy's memory for one DC, all receivers together: room for the largest loan beside others.
pub const PROXY_POOL_BYTES_MAX: u64 = 2 << 30;
/// What one remote receiver may hold of a proxy's pool; one extent larger than this is let through alone.
pub const PROXY_RECEIVER_BYTES_MAX: u64 = 24 << 20;

/// Grants of one endpoint that live at a time: the entries of its table.
pub const GRANTS_MAX: u16 = 1024;
/// One segment whose ranges are granted, and one `copy`.
pub const COPY_BYTES_MAX: u64 = 1 << 30;
/// All segments of one endpoint whose ranges are granted.
pub const GRANTED_BYTES_MAX: u64 = 4 << 30;
/// What is copied between two looks at whether it is still granted.
pub const COPY_STEP_BYTES: u64 = 1 << 20;
/// Steps of one copy that are announced to another node and not yet there.
pub const COPY_STEPS_AHEAD: usize = 3;
/// Milliseconds that a revocation waits for whoever is in the middle of a step; then it moves the pages.
pub const REVOKE_WAIT_MS: u64 = 20;
/// Milliseconds that a copy whose time is over waits to hear that nothing is written any more.
pub const COPY_CANCEL_WAIT_MS: u64 = 1_000;
/// Segments of others that one endpoint keeps mapped for its copies.
pub const GRANTED_MAPS_MAX: usize = 16;

/// What `dvs cp` compares, leaves out or carries at once.
pub const CP_BLOCK_BYTES: u64 = 1 << 20;
/// Blocks of which digests are asked for at once.
pub const CP_MARKS_MAX: u32 = 64;
/// Bytes of one name of a path, as Linux has it.
pub const CP_NAME_BYTES_MAX: usize = 255;
/// Bytes of what a symbolic link leads to.
pub const CP_LINK_BYTES_MAX: usize = 4095;
/// Names of one path below what is copied.
pub const CP_DEPTH_MAX: usize = 128;
/// Files, folders and links of one copy, and of one folder.
pub const CP_ENTRIES_MAX: usize = 1 << 20;
/// Entries of a folder in one answer.
pub const CP_PAGE_ENTRIES: usize = 256;
/// Commands that one `dvs cp --serve` serves at a time.
pub const CP_SESSIONS_MAX: usize = 8;

/// Pair sides of an endpoint's first side segment.
pub const SIDES_FIRST: u32 = 8;
/// Pair sides of each further side segment.
pub const SIDES_MORE: u32 = 16;
/// Side segments of a private endpoint at first, of one side each: a pair has its own.
pub const SIDES_PRIVATE_FIRST: u32 = 4;
/// Pair sides of one side segment of a proxy.
pub const SIDES_PROXY: u32 = 64;
/// Segments of one endpoint memory.
pub const SEGMENTS_MAX: u32 = 1024;
/// A side segment is added when fewer free sides than this are left.
pub const SIDES_SPARE_MIN: u32 = 4;

/// One frame between two nodes, without its header.
pub const FRAME_BYTES_MAX: u32 = 64 << 10;
/// Bulk bytes in one frame of the TCP wire, so that heartbeats come between.
pub const BULK_BYTES_MAX: u32 = 256 << 10;
/// What a fabric copies at `post_send` and need not keep in a region.
pub const HEAD_BYTES_MAX: usize = 1024;
/// Bytes of one link's messages that a courier has posted at most, one run of slots more or less: what was posted before
/// it is all that a DC with something new to say waits for, beside the others' turns.
pub const LINK_POSTED_BYTES_MAX: u64 = 128 << 10;
/// What one DC sends in slots before the next has its turn.
pub const TURN_BYTES: u64 = 16 << 10;
/// Extents that are pulled at once for one DC over one link, unless a single one is longer.
pub const PULLED_BYTES_PER_DC_MAX: u64 = 4 << 20;
/// Bytes of one bulk message that a TCP session sends before it looks for messages and for the bulk of other DCs.
pub const BULK_TURN_BYTES: u32 = 64 << 10;
/// Bulk bytes on their way in one direction of a TCP session that several DCs use, unsaid to be taken: as few as this at
/// least, so much stands in the kernels' buffers before a message.
pub const BULK_WINDOW_BYTES_MIN: u64 = 256 << 10;
/// As many as this at most: where the path is long, or one DC alone uses the session.
pub const BULK_WINDOW_BYTES_MAX: u64 = 64 << 20;
/// A receiver says what it has taken each time it is so much more.
pub const BULK_TAKEN_EVERY_BYTES: u64 = 128 << 10;
/// Pieces of one posted message.
pub const PIECES_MAX: usize = 3;

/// Bytes of a name: of a node, a DC, an endpoint.
pub const NAME_BYTES_MAX: usize = 32;

/// Without a heartbeat for this long a link is shown as cut.
pub const LINK_DOWN_AFTER_MS: u64 = 2_000;
/// Default of the cluster file's `node_dead_after_ms`.
pub const NODE_DEAD_AFTER_MS: u64 = 10_000;
/// How often a heartbeat is sent.
pub const HEARTBEAT_EVERY_MS: u64 = 250;
/// A proxy that shows no progress to its daemon for this long is restarted.
pub const PROXY_STALLED_AFTER_MS: u64 = 1_000;
/// Milliseconds that a request passed on is held for its client to confirm: longer than an introduction may take.
pub const RELAY_HOLD_MS: u64 = 10_000;
/// How long a first call may wait for its introduction.
pub const INTRODUCTION_WAIT_MS: u64 = 5_000;
/// How long a withdrawal waits for the receiver's outcome.
pub const WITHDRAW_WAIT_MS: u64 = 1;
/// What a dead sender published is kept for its receiver this long.
pub const ORPHAN_KEEP_MS: u64 = 60_000;
/// A sleeper looks again after this long, should the doorbell page be spoilt.
pub const RESCAN_FIRST_MS: u64 = 100;
/// The longest pause between two such looks.
pub const RESCAN_MAX_MS: u64 = 2_000;

const _: () = assert!(
    DCS_MAX as u64 * (NODES_MAX as u64 + (UIDS_PER_DC_MAX + RULE_WORDS_PER_DC_MAX) as u64 + 16) * 17
        <= DCS_FILE_BYTES_MAX
);
const _: () = assert!(LANE_SLOTS.is_power_of_two());
const _: () = assert!(SIDES_PRIVATE_FIRST >= SIDES_SPARE_MIN);
const _: () = assert!(EXTENTS_PER_PAIR_MAX.is_power_of_two());
const _: () = assert!(SLOT_HEADER_BYTES + INLINE_BYTES_MAX == SLOT_BYTES);
const _: () = assert!(LOAN_BYTES_MAX as u64 <= EXTENT_BYTES_PER_PAIR_MAX);
const _: () = assert!(BULK_TURN_BYTES <= BULK_BYTES_MAX && TURN_BYTES <= LINK_POSTED_BYTES_MAX);
const _: () = assert!(LANE_SLOTS * SLOT_BYTES as u64 <= FRAME_BYTES_MAX as u64);
const _: () = assert!(PROXY_POOL_BYTES_MAX >= LOAN_BYTES_MAX as u64 + PROXY_RECEIVER_BYTES_MAX);
