-- wrk script: one POST of 1 KiB, built once (wrk then sends the same bytes, no Lua runs per request), and a summary as one JSON line.
wrk.method = "POST"
wrk.body = string.rep("k", 1024)
wrk.headers["Content-Type"] = "application/octet-stream"

function done(summary, latency, _)
   local errors = summary.errors
   io.write(string.format(
      '{"requests":%d,"duration_us":%d,"not_2xx":%d,"socket_errors":%d,"p50_us":%d,"p90_us":%d,"p99_us":%d,"p999_us":%d,"max_us":%d}\n',
      summary.requests, summary.duration, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
      latency:percentile(50), latency:percentile(90), latency:percentile(99), latency:percentile(99.9), latency.max))
end
