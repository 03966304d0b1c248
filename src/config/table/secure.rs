//! Keys of TLS on the listeners: `tls`. See [`super`] for what each says.

use crate::config::{
    forms::is_certificate,
    keys::{Form, Key, Kind, Preset},
};

pub const KEYS: &[Key] = &[
    Key {
        path: "tls.certificates",
        kind: Kind::List(Form {
            expected: "`CERTIFICATE.pem:KEY.pem`, or one file that holds both",
            is_valid: |text| is_certificate(text),
        }),
        default: Preset::List(&[]),
        doc: "Certificates of the listeners that speak TLS, each `CERTIFICATE.pem:KEY.pem` (chain included, key not encrypted) or one file \
              that holds both. A client gets the first that is for the host it names (SNI), else the first of all. The files are looked at \
              every two seconds: renewed ones serve new connections, and those that cannot be used change nothing.",
        hot: true,
    },
    Key {
        path: "tls.min_version",
        kind: Kind::Choice(&["1.2", "1.3"]),
        default: Preset::Text("1.2"),
        doc: "The oldest version of TLS a client may speak.",
        hot: true,
    },
];
