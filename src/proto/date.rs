//! The `Date` field (RFC 9110 section 6.6.1), formatted once a second and core.

use std::{
    cell::Cell,
    time::{SystemTime, UNIX_EPOCH},
};

/// Length of an IMF-fixdate.
pub const DATE_BYTES: usize = 29;

thread_local! {
    static CACHED: Cell<(u64, [u8; DATE_BYTES])> = const { Cell::new((u64::MAX, [b' '; DATE_BYTES])) };
}

/// Brings the core's cached date up to now. Called by the core's tick.
pub fn refresh() {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    if CACHED.get().0 != now_s {
        CACHED.set((now_s, format(now_s)));
    }
}

/// The cached date.
pub fn cached() -> [u8; DATE_BYTES] {
    if CACHED.get().0 == u64::MAX {
        refresh();
    }
    CACHED.get().1
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn format(unix_s: u64) -> [u8; DATE_BYTES] {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    let (year, month, day) = civil(days);
    let text = format!(
        "{}, {day:02} {} {year:04} {:02}:{:02}:{:02} GMT",
        DAYS[usize::try_from(days % 7).unwrap_or(0)],
        MONTHS[month - 1],
        second / 3600,
        second / 60 % 60,
        second % 60
    );
    let mut out = [b' '; DATE_BYTES];
    out.copy_from_slice(&text.as_bytes()[..DATE_BYTES]);
    out
}

/// Days since 1970 to year, month, day (Howard Hinnant's `civil_from_days`, for days after 1970).
fn civil(days: u64) -> (u64, usize, u64) {
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let mp = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, usize::try_from(month).unwrap_or(1), day)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_example_of_the_rfc() {
        assert_eq!(&super::format(784_111_777), b"Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(&super::format(951_782_400), b"Tue, 29 Feb 2000 00:00:00 GMT");
    }
}
