// Names the version of kafka-pixy that perf/peers/run builds; go checks what it fetches against the checksum database.
module kateway/peers

go 1.16

require github.com/mailgun/kafka-pixy v0.18.0
