//! A client of librdkafka and one topic of it. Both end with the value that holds them; nothing here knows what is measured.

use std::{
    ffi::{CStr, CString, c_void},
    fmt::Display,
    mem, ptr,
};

use rdkafka::bindings as rd;

use crate::Place;

const ERROR_TEXT_BYTES: usize = 512;
/// Connecting to a broker and one answer of it.
const METADATA_TIMEOUT_MS: i32 = 10_000;

/// Settings on their way into a client.
#[derive(Debug)]
pub struct Options(*mut rd::rd_kafka_conf_t);

impl Options {
    /// Ours, then those of the command line.
    pub fn new(place: &Place, ours: &[(&str, &dyn Display)]) -> Result<Self, String> {
        // SAFETY: makes a new list, which `self` owns.
        let options = Self(unsafe { rd::rd_kafka_conf_new() });
        options.set("bootstrap.servers", &place.brokers)?;
        for (name, value) in ours {
            options.set(name, &value.to_string())?;
        }
        for setting in &place.settings {
            let (name, value) = setting.split_once('=').ok_or(format!("--set {setting}: NAME=VALUE"))?;
            options.set(name, value)?;
        }
        Ok(options)
    }

    fn set(&self, name: &str, value: &str) -> Result<(), String> {
        let (name, value) = (c_string(name)?, c_string(value)?);
        let mut text = [0; ERROR_TEXT_BYTES];
        // SAFETY: the list is ours, the strings end in zero, the buffer has the length given.
        let result =
            unsafe { rd::rd_kafka_conf_set(self.0, name.as_ptr(), value.as_ptr(), text.as_mut_ptr(), text.len()) };
        match result {
            rd::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK => Ok(()),
            _ => Err(text_of(&text)),
        }
    }

    /// `report` is called from `poll` for every message, with `opaque`.
    pub fn on_report(&self, report: Report, opaque: *mut c_void) {
        // SAFETY: the list is ours; who passes `opaque` keeps it until the client is gone.
        unsafe {
            rd::rd_kafka_conf_set_dr_msg_cb(self.0, Some(report));
            rd::rd_kafka_conf_set_opaque(self.0, opaque);
        }
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: ours, and no client took it.
        unsafe { rd::rd_kafka_conf_destroy(self.0) };
    }
}

pub type Report = unsafe extern "C" fn(*mut rd::rd_kafka_t, *const rd::rd_kafka_message_t, *mut c_void);

/// A client with its topic.
#[derive(Debug)]
pub struct Client {
    pub rk: *mut rd::rd_kafka_t,
    pub topic: *mut rd::rd_kafka_topic_t,
    pub partitions: i32,
}

impl Client {
    pub fn new(kind: rd::rd_kafka_type_t, options: Options, topic: &str) -> Result<Self, String> {
        let mut text = [0; ERROR_TEXT_BYTES];
        let name = c_string(topic)?;
        // SAFETY: live options, which the client takes when it is made, and only then.
        let rk = unsafe { rd::rd_kafka_new(kind, options.0, text.as_mut_ptr(), text.len()) };
        if rk.is_null() {
            return Err(text_of(&text));
        }
        mem::forget(options);
        // SAFETY: a live client; null options mean the client's.
        let topic = unsafe { rd::rd_kafka_topic_new(rk, name.as_ptr(), ptr::null_mut()) };
        let mut client = Self { rk, topic, partitions: 0 };
        client.partitions = client.count_partitions()?;
        Ok(client)
    }

    /// Asks a broker, so that the connection stands and the topic is known when the measuring starts.
    fn count_partitions(&self) -> Result<i32, String> {
        let mut metadata = ptr::null();
        // SAFETY: live client and topic; what is given is read before it is destroyed.
        unsafe {
            let code = rd::rd_kafka_metadata(self.rk, 0, self.topic, &raw mut metadata, METADATA_TIMEOUT_MS);
            if code != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Err(name_of(code));
            }
            let first = (*metadata).topics;
            let (count, code) = if (*metadata).topic_cnt == 1 {
                ((*first).partition_cnt, (*first).err)
            } else {
                (0, rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC)
            };
            rd::rd_kafka_metadata_destroy(metadata);
            if count > 0 { Ok(count) } else { Err(format!("the topic has no partition: {}", name_of(code))) }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // SAFETY: both are ours and not used again.
        unsafe {
            rd::rd_kafka_topic_destroy(self.topic);
            rd::rd_kafka_destroy(self.rk);
        }
    }
}

pub fn name_of(code: rd::rd_kafka_resp_err_t) -> String {
    // SAFETY: the text is static.
    unsafe { CStr::from_ptr(rd::rd_kafka_err2str(code)) }.to_string_lossy().into_owned()
}

fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| format!("{text:?} has a zero in it"))
}

fn text_of(buffer: &[std::ffi::c_char]) -> String {
    // SAFETY: librdkafka ends what it writes with zero, and the buffer began as zeros.
    unsafe { CStr::from_ptr(buffer.as_ptr()) }.to_string_lossy().into_owned()
}
