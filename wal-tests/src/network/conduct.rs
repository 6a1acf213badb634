//! How a link treats what is sent over it.

use std::time::Duration;

use crate::links::Rule;

/// How frames travel from one place to another. The default lets all of them through at once.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Conduct {
    /// All are lost.
    pub cut: bool,
    /// They wait until the conduct changes; above a few thousand the oldest are lost.
    pub hold: bool,
    /// So many out of a hundred are lost.
    pub loss: u8,
    /// So many out of a hundred arrive twice.
    pub duplicate: u8,
    /// So many out of a hundred are overtaken by those behind them.
    pub reorder: u8,
    /// So many out of a hundred arrive with a bit flipped.
    pub corrupt: u8,
    /// How long every frame takes.
    pub delay: Duration,
    /// How much longer it takes at most, each by chance, so that they overtake each other.
    pub jitter: Duration,
    /// What the link carries; `None` is without limit. Frames queue for it, up to half a second.
    pub bytes_per_second: Option<u32>,
}

impl Conduct {
    /// A link that carries nothing.
    pub const CUT: Self = Self {
        cut: true,
        ..Self::OPEN
    };

    /// A link that carries everything.
    pub const OPEN: Self = Self {
        cut: false,
        hold: false,
        loss: 0,
        duplicate: 0,
        reorder: 0,
        corrupt: 0,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        bytes_per_second: None,
    };

    /// Both at once, of two that are in force on one link.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            cut: self.cut || other.cut,
            hold: self.hold || other.hold,
            loss: self.loss.max(other.loss),
            duplicate: self.duplicate.max(other.duplicate),
            reorder: self.reorder.max(other.reorder),
            corrupt: self.corrupt.max(other.corrupt),
            delay: self.delay + other.delay,
            jitter: self.jitter + other.jitter,
            bytes_per_second: match (self.bytes_per_second, other.bytes_per_second) {
                (Some(one), Some(another)) => Some(one.min(another)),
                (one, another) => one.or(another),
            },
        }
    }
}

impl From<Rule> for Conduct {
    fn from(rule: Rule) -> Self {
        match rule {
            Rule::Cut => Self::CUT,
            Rule::Hold => Self {
                hold: true,
                ..Self::OPEN
            },
            Rule::Lossy(loss) => Self { loss, ..Self::OPEN },
            Rule::Open => Self::OPEN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_conducts_the_worse_part_of_each_holds() {
        let slow = Conduct {
            delay: Duration::from_millis(20),
            bytes_per_second: Some(1000),
            loss: 5,
            ..Conduct::OPEN
        };
        let both = slow.and(Conduct::from(Rule::Lossy(30))).and(Conduct::OPEN);
        assert_eq!(both, Conduct { loss: 30, ..slow });
        assert!(both.and(Conduct::CUT).cut);
    }
}
