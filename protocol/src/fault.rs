//! What a node says on the wire when it will not go on: numbers, never text. One table each way.
//!
//! A close code ends a connection, a refuse code ends one stream. Both are QUIC application error codes (RFC 9000,
//! section 20.2). A code that this version does not know reads as `Unspecified`, so that later ones can add.

/// Declares an enum of wire codes together with its table.
macro_rules! wire_codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $code:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// Every code, for tables and tests.
            pub const ALL: &[$name] = &[$($name::$variant,)*];

            /// The number on the wire.
            pub fn code(self) -> u32 {
                match self { $($name::$variant => $code,)* }
            }

            /// The code behind a number from the wire.
            pub fn from_code(code: u64) -> $name {
                match code { $($code => $name::$variant,)* _ => $name::Unspecified }
            }

            /// For the operator of this node; never sent.
            pub fn text(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.text())
            }
        }
    };
}

wire_codes! {
    /// Why a connection was closed.
    CloseCode {
        /// No reason that concerns the other side.
        Unspecified = 0, "closed without a reason";
        /// The exchange is over and the two do not trust each other (yet).
        Done = 1, "the exchange is over";
        /// Trust was revoked.
        Revoked = 2, "trust was revoked";
        /// Another connection between the two stays.
        Duplicate = 3, "another connection between the two stays";
        /// The node is stopping.
        Stopping = 4, "the node is stopping";
        /// The node does not talk to this key. Says nothing about why.
        Refused = 5, "the node does not talk to this key";
        /// The node has no room now.
        Busy = 6, "the node has no room now";
        /// Nothing happened within the deadline.
        TimedOut = 7, "nothing happened within the deadline";
        /// The peer broke the protocol.
        BadProtocol = 8, "the protocol was broken";
    }
}

wire_codes! {
    /// Why a stream was refused or reset.
    RefuseCode {
        /// No reason that concerns the other side.
        Unspecified = 0, "refused without a reason";
        /// A version of the protocol that this node does not speak.
        BadVersion = 1, "unknown version of the protocol";
        /// Bytes that are no frame, or a frame in the wrong place.
        BadFrame = 2, "not a valid frame here";
        /// An extension that must be understood and is not.
        CriticalExtension = 3, "unknown critical extension";
        /// A statement that is not between these two peers, or whose signature does not hold.
        BadStatement = 4, "a statement that cannot be believed";
        /// This stream is not for this peer.
        NotAuthorised = 5, "not authorised";
        /// No room, or the disk does not answer; ask again.
        Busy = 6, "busy, ask again";
        /// The deadline passed.
        TimedOut = 7, "the deadline passed";
        /// A service that nobody offers here.
        NoSuchService = 8, "no such service";
        /// The node is stopping.
        Stopping = 9, "the node is stopping";
    }
}

wire_codes! {
    /// Why a request on a join stream is refused. Only who holds the secret of an invite learns more than `Unknown`.
    JoinRefusal {
        /// No reason that concerns the other side.
        Unspecified = 0, "refused without a reason";
        /// No invite here has this secret.
        Unknown = 1, "no such invite";
        /// The invite is for another network than the ticket says.
        WrongNetwork = 2, "the invite is for another network";
        /// Every use of the invite was taken by other keys.
        Exhausted = 3, "invite exhausted";
        /// The invite has ended.
        Expired = 4, "the invite has expired";
        /// The invite's time has not come.
        NotYetValid = 5, "the invite is not valid yet";
        /// The inviter took the invite back.
        Revoked = 6, "the invite was revoked";
        /// The network's authority has expelled this key.
        Expelled = 7, "expelled from the network";
        /// The proof of membership does not hold, or is another's.
        NotAMember = 8, "not a member of the network";
        /// This node is not, or no longer, in a position to sign certificates of the network.
        CannotIssue = 9, "this node cannot sign certificates of the network";
        /// This node is not in the network.
        NotHere = 10, "this node is not in the network";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_and_unknown_ones_are_unspecified() {
        for code in CloseCode::ALL {
            assert_eq!(CloseCode::from_code(u64::from(code.code())), *code);
        }
        for code in RefuseCode::ALL {
            assert_eq!(RefuseCode::from_code(u64::from(code.code())), *code);
        }
        for code in JoinRefusal::ALL {
            assert_eq!(JoinRefusal::from_code(u64::from(code.code())), *code);
        }
        assert_eq!(RefuseCode::from_code(u64::MAX), RefuseCode::Unspecified);
        assert_eq!(CloseCode::from_code(99), CloseCode::Unspecified);
    }
}
