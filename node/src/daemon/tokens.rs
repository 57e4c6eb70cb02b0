//! What a descriptor in the daemon's epoll is: its kind in the top byte, its number below.

/// The bytes of a token that hold the number.
const NUMBER: u64 = (1 << 56) - 1;

/// What is watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Watched {
    /// The member socket.
    Listener = 1,
    /// A member's connection, and the process behind it.
    Member = 2,
    MemberProcess = 3,
    /// A process that somebody bound, or wants to bind.
    Ticket = 4,
    /// A proxy's link, and its process.
    Proxy = 5,
    ProxyExit = 6,
    /// The admin socket and its connections.
    Admin = 7,
    AdminConn = 8,
    /// The wish to stop.
    Stop = 9,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Token {
    pub kind: Watched,
    pub id: u64,
}

impl Token {
    pub fn to_word(self) -> u64 {
        (self.kind as u64) << 56 | (self.id & NUMBER)
    }

    pub fn from_word(word: u64) -> Option<Token> {
        let kind = match word >> 56 {
            1 => Watched::Listener,
            2 => Watched::Member,
            3 => Watched::MemberProcess,
            4 => Watched::Ticket,
            5 => Watched::Proxy,
            6 => Watched::ProxyExit,
            7 => Watched::Admin,
            8 => Watched::AdminConn,
            9 => Watched::Stop,
            _ => return None,
        };
        Some(Token { kind, id: word & NUMBER })
    }
}
