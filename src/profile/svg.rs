//! A flame graph of a profile as one SVG: who was called by whom, as wide as the time it took.
//!
//! Drawn by hand, a hundred lines: the crate that draws them (`inferno`, which `make flame` uses) is under the CDDL, and this is
//! shipped. Names and shares show on hover; who wants to zoom takes the folded stacks to a tool of his choice.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    fmt::Write,
    hash::{Hash, Hasher},
};

use super::Profile;

const WIDTH: f64 = 1_200.0;
const ROW: f64 = 17.0;
const MARGIN: f64 = 10.0;
const HEADER: f64 = 40.0;
/// Advance of one letter of the font below.
const LETTER: f64 = 7.0;
/// Narrower frames are not drawn.
const NARROW: f64 = 0.4;

#[derive(Default)]
struct Frame<'a> {
    samples: u64,
    callees: BTreeMap<&'a str, Frame<'a>>,
}

impl Frame<'_> {
    fn depth(&self) -> usize {
        1 + self.callees.values().map(Frame::depth).max().unwrap_or(0)
    }
}

/// The picture, its first row named `root`.
pub fn draw(profile: &Profile, root: &str) -> String {
    let mut tree = Frame::default();
    for (stack, count) in &profile.stacks {
        tree.samples += count;
        let mut frame = &mut tree;
        for name in stack {
            frame = frame.callees.entry(name).or_default();
            frame.samples += count;
        }
    }
    #[allow(clippy::cast_precision_loss)] // A depth.
    let height = HEADER + MARGIN + ROW * tree.depth() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"monospace\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff8ee\"/>\n\
         <text x=\"{MARGIN}\" y=\"24\" font-size=\"15\">{}: {} samples in {} s, {:.2} s of CPU, {} lost</text>\n",
        escaped(root),
        profile.samples,
        profile.lasted.as_secs(),
        profile.cpu.as_secs_f64(),
        profile.lost
    );
    let scale = Scale { of_all: tree.samples.max(1), bottom: height - MARGIN };
    scale.draw(&mut out, root, &tree, (MARGIN, WIDTH - 2.0 * MARGIN), 0);
    out.push_str("</svg>\n");
    out
}

struct Scale {
    of_all: u64,
    bottom: f64,
}

impl Scale {
    /// A frame at `(x, width)`, and what it called above it.
    #[allow(clippy::cast_precision_loss)] // Shares of a picture.
    fn draw(&self, out: &mut String, name: &str, frame: &Frame<'_>, (x, width): (f64, f64), row: usize) {
        if width < NARROW {
            return;
        }
        let y = self.bottom - ROW * (row + 1) as f64;
        let share = 100.0 * frame.samples as f64 / self.of_all as f64;
        let fill = colour(name);
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "<g><title>{}: {} samples, {share:.2} %</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" \
             height=\"{:.1}\" fill=\"{fill}\" rx=\"1\"/>",
            escaped(name),
            frame.samples,
            ROW - 1.0
        );
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A few hundred at most.
        let letters = ((width - 4.0).max(0.0) / LETTER) as usize;
        if letters >= 3 {
            let shown: String = name.chars().take(letters).collect();
            let _ = write!(out, "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", x + 2.0, y + 12.0, escaped(&shown));
        }
        out.push_str("</g>\n");
        let mut left = x;
        for (callee, below) in &frame.callees {
            let wide = width * below.samples as f64 / frame.samples.max(1) as f64;
            self.draw(out, callee, below, (left, wide), row + 1);
            left += wide;
        }
    }
}

/// Warm, and always the same for a name.
fn colour(name: &str) -> String {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    let hash = hasher.finish();
    format!("rgb({},{},{})", 205 + hash % 50, 90 + hash / 50 % 130, 40 + hash / 6_500 % 50)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_as_wide_as_their_share() {
        let stack = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let stacks = vec![(stack(&["run", "read<u8>"]), 3), (stack(&["run", "write"]), 1)];
        let svg = draw(&Profile { stacks, samples: 4, ..Profile::default() }, "shard-0");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("<title>shard-0: 4 samples, 100.00 %</title>"), "{svg}");
        assert!(svg.contains("<title>read&lt;u8&gt;: 3 samples, 75.00 %</title>"), "{svg}");
        assert_eq!(svg.matches("<g>").count(), svg.matches("</g>").count());
        assert!(svg.contains("width=\"885.0\"") && svg.contains("width=\"295.0\""), "{svg}");
    }

    #[test]
    fn nothing_sampled_is_still_a_picture() {
        assert!(draw(&Profile::default(), "shard-0").contains("0 samples"));
    }
}
