//! The geometry of windows: panes, and the ends of the windows over a pane.
//!
//! # Panes
//! Windows begin at offset + n · slide and end `size` later. With r = size mod slide no window
//! begins or ends but at a multiple of the slide or r behind one, so the panes are `[n · slide, n ·
//! slide + r)` and `[n · slide + r, (n + 1) · slide)`, or the slide as a whole where r is 0. They
//! are unions of panes that are gcd(size, slide) wide, at most two a slide however small the gcd.
//! Where the slide is no less than the size, a pane is a window, and times between windows have
//! none.

use weir_engine::time::{Millis, floor_to};

/// A kind of window with its lengths in milliseconds, all above 0 but the offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum WindowShape {
    /// Windows `[n · size, (n + 1) · size)`, shifted by the offset.
    Tumble {
        /// Length of a window.
        size: Millis,
        /// Shift of all windows.
        offset: Millis,
    },
    /// Windows of `size` that begin every `slide`.
    Hop {
        /// Length of a window; need not be a multiple of the slide.
        size: Millis,
        /// Distance of their beginnings; may be above the size: then some times have no window.
        slide: Millis,
        /// Shift of all windows.
        offset: Millis,
    },
    /// Windows that begin with each `size` and end with each `step` of it.
    Cumulate {
        /// Length of the longest window, a multiple of the step.
        size: Millis,
        /// Distance of the ends.
        step: Millis,
        /// Shift of all windows.
        offset: Millis,
    },
}

/// A range of event time whose rows belong to the same windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pane {
    pub(super) start: Millis,
    /// The first time behind it.
    pub(super) end: Millis,
}

impl Pane {
    /// No time at all.
    pub(super) const NOWHERE: Pane = Pane { start: Millis::MAX, end: Millis::MIN };

    #[inline]
    pub(super) fn holds(self, ts: Millis) -> bool {
        self.start <= ts && ts < self.end
    }
}

impl WindowShape {
    /// What is wrong with the lengths, if anything.
    pub fn complaint(self) -> Option<String> {
        match self {
            WindowShape::Tumble { size, .. } if size <= 0 => {
                Some(format!("the size of a window must be above 0, not {size} ms"))
            }
            WindowShape::Hop { size, slide, .. } if size <= 0 || slide <= 0 => {
                Some(format!("size and slide must be above 0, not {size} ms and {slide} ms"))
            }
            WindowShape::Cumulate { size, step, .. }
                if size <= 0 || step <= 0 || size % step != 0 =>
            {
                Some(format!(
                    "the size must be a multiple of the step, above 0, not {size} ms by {step} ms"
                ))
            }
            _ => None,
        }
    }

    /// The pane of a time, if a window holds it.
    pub(super) fn pane(self, ts: Millis) -> Option<Pane> {
        match self {
            WindowShape::Tumble { size, offset } => {
                let start = floor_to(ts, size, offset);
                Some(Pane { start, end: start.saturating_add(size) })
            }
            WindowShape::Hop { size, slide, offset } => {
                let start = floor_to(ts, slide, offset);
                if slide >= size {
                    let pane = Pane { start, end: start.saturating_add(size) };
                    return pane.holds(ts).then_some(pane);
                }
                let (middle, end) =
                    (start.saturating_add(size % slide), start.saturating_add(slide));
                Some(if ts < middle {
                    Pane { start, end: middle }
                } else {
                    Pane { start: middle, end }
                })
            }
            WindowShape::Cumulate { step, offset, .. } => {
                let start = floor_to(ts, step, offset);
                Some(Pane { start, end: start.saturating_add(step) })
            }
        }
    }

    /// Whether no two windows share a time.
    pub(super) fn is_disjoint(self) -> bool {
        match self {
            WindowShape::Tumble { .. } => true,
            WindowShape::Hop { size, slide, .. } => slide >= size,
            WindowShape::Cumulate { size, step, .. } => size == step,
        }
    }

    /// The first end of a window, of any pane, that is above `time`.
    pub(super) fn end_after(self, time: Millis) -> Millis {
        let (step, origin) = match self {
            WindowShape::Tumble { size, offset } => (size, offset),
            WindowShape::Hop { size, slide, offset } => (slide, offset.saturating_add(size)),
            WindowShape::Cumulate { step, offset, .. } => (step, offset),
        };
        floor_to(time, step, origin).saturating_add(step)
    }

    /// The end of the first window over a pane.
    pub(super) fn first_end(self, pane: Pane) -> Millis {
        self.end_after(pane.end.saturating_sub(1))
    }

    /// The end of the last window over the pane that starts here.
    pub(super) fn last_end(self, pane_start: Millis) -> Millis {
        match self {
            WindowShape::Tumble { size, .. } => pane_start.saturating_add(size),
            WindowShape::Hop { size, slide, offset } => {
                floor_to(pane_start, slide, offset).saturating_add(size)
            }
            WindowShape::Cumulate { size, offset, .. } => {
                floor_to(pane_start, size, offset).saturating_add(size)
            }
        }
    }

    /// The start of the window with this end.
    pub(super) fn start_of(self, end: Millis) -> Millis {
        match self {
            WindowShape::Tumble { size, .. } | WindowShape::Hop { size, .. } => {
                end.saturating_sub(size)
            }
            WindowShape::Cumulate { size, offset, .. } => floor_to(end - 1, size, offset),
        }
    }

    /// A short name.
    pub(super) fn name(self) -> &'static str {
        match self {
            WindowShape::Tumble { .. } => "tumble",
            WindowShape::Hop { .. } => "hop",
            WindowShape::Cumulate { .. } => "cumulate",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Panes hold what the windows by definition hold, for all small shapes and times.
    #[test]
    fn panes_agree_with_the_definition_of_windows() {
        for size in 1..=12 {
            for slide in 1..=14 {
                for offset in [-3, 0, 5] {
                    let hop = WindowShape::Hop { size, slide, offset };
                    (-20..20).for_each(|ts| check(hop, ts, slide, offset));
                }
            }
        }
    }

    fn check(hop: WindowShape, ts: Millis, slide: Millis, offset: Millis) {
        let WindowShape::Hop { size, .. } = hop else { return };
        let ends: Vec<Millis> = (-60..60)
            .map(|n| n * slide + offset)
            .filter(|start| (*start..start + size).contains(&ts))
            .map(|start| start + size)
            .collect();
        let pane = hop.pane(ts);
        assert_eq!(pane.is_some(), !ends.is_empty(), "{hop:?} at {ts}");
        let Some(pane) = pane else { return };
        assert_eq!(Some(&hop.first_end(pane)), ends.first(), "{hop:?} at {ts}");
        assert_eq!(Some(&hop.last_end(pane.start)), ends.last(), "{hop:?} at {ts}");
        assert!(pane.holds(ts) && ends.iter().all(|&end| hop.start_of(end) == end - size));
    }
}
