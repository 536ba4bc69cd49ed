//! Why a token is refused: what is counted, and what the client is told.

/// In the order in which a token is looked at; the first fault found is the one reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFault {
    /// Longer than `TOKEN_BYTES_MAX`; not looked at any further.
    TooLong,
    /// Not three parts of base64url (RFC 7515 section 7.1), header or claims not the JSON that RFC 7515 and RFC 7519 ask for, or a
    /// header that lists extensions to be understood (`crit`): there are none that we do.
    Malformed,
    /// Signed with an algorithm that none of the keys is for; `none` is one of these.
    Algorithm,
    /// It names a key (`kid`) that is not there.
    UnknownKey,
    Signature,
    /// No `exp` claim.
    NoExpiration,
    Expired,
    NotYetValid,
    Audience,
    Issuer,
}

impl TokenFault {
    pub const ALL: [TokenFault; 10] = [
        TokenFault::TooLong,
        TokenFault::Malformed,
        TokenFault::Algorithm,
        TokenFault::UnknownKey,
        TokenFault::Signature,
        TokenFault::NoExpiration,
        TokenFault::Expired,
        TokenFault::NotYetValid,
        TokenFault::Audience,
        TokenFault::Issuer,
    ];

    /// For the metric `signalring_tokens_total{result}` and the log.
    pub fn label(self) -> &'static str {
        match self {
            TokenFault::TooLong => "too_long",
            TokenFault::Malformed => "malformed",
            TokenFault::Algorithm => "algorithm",
            TokenFault::UnknownKey => "unknown_key",
            TokenFault::Signature => "signature",
            TokenFault::NoExpiration => "no_expiration",
            TokenFault::Expired => "expired",
            TokenFault::NotYetValid => "not_yet_valid",
            TokenFault::Audience => "audience",
            TokenFault::Issuer => "issuer",
        }
    }

    /// For `error_description` of a `WWW-Authenticate` challenge, so neither quotes nor backslashes (RFC 6750 section 3).
    pub fn description(self) -> &'static str {
        match self {
            TokenFault::TooLong => "The token is too long",
            TokenFault::Malformed => "The token is malformed",
            TokenFault::Algorithm => "The signature algorithm is not accepted",
            TokenFault::UnknownKey => "The signature key was not found",
            TokenFault::Signature => "The signature is invalid",
            TokenFault::NoExpiration => "The token has no expiration",
            TokenFault::Expired => "The token has expired",
            TokenFault::NotYetValid => "The token is not valid yet",
            TokenFault::Audience => "The audience is invalid",
            TokenFault::Issuer => "The issuer is invalid",
        }
    }
}

impl core::fmt::Display for TokenFault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.description())
    }
}

impl core::error::Error for TokenFault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_fit_into_a_challenge() {
        for fault in TokenFault::ALL {
            let allowed = |byte: u8| matches!(byte, 0x20..=0x21 | 0x23..=0x5b | 0x5d..=0x7e);
            assert!(fault.description().bytes().all(allowed), "{fault:?}");
        }
    }
}
