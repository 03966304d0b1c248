// A member of a consumer group that is Kafka's own: started by tests/harness/java.rs as `java -cp jars Member.java
// BROKERS GROUP TOPIC`. Says on stdout, a line each: `assigned P..`, `revoked P..`, `record P O SIZE`; commits after each poll;
// leaves the group when stdin ends, and then says `closed`.

import java.time.Duration;
import java.util.Collection;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

public class Member {
    public static void main(String[] args) throws Exception {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", args[0]);
        properties.put("group.id", args[1]);
        properties.put("client.id", "java-member");
        properties.put("enable.auto.commit", "false");
        properties.put("auto.offset.reset", "earliest");
        properties.put("max.poll.records", "50");
        properties.put("session.timeout.ms", "6000");
        properties.put("heartbeat.interval.ms", "1000");
        properties.put("partition.assignment.strategy", "org.apache.kafka.clients.consumer.CooperativeStickyAssignor");
        AtomicBoolean isOver = new AtomicBoolean();
        Thread watch = new Thread(() -> {
            try {
                while (System.in.read() >= 0) {
                    // Only the end is waited for.
                }
            } catch (java.io.IOException ignored) {
                // As good as the end.
            }
            isOver.set(true);
        });
        watch.setDaemon(true);
        watch.start();
        try (var consumer = new KafkaConsumer<>(properties, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            consumer.subscribe(List.of(args[2]), new Said());
            while (!isOver.get()) {
                var records = consumer.poll(Duration.ofMillis(100));
                for (ConsumerRecord<byte[], byte[]> record : records) {
                    int size = record.value() == null ? -1 : record.value().length;
                    say("record " + record.partition() + " " + record.offset() + " " + size);
                }
                if (!records.isEmpty()) {
                    consumer.commitSync();
                }
            }
        }
        say("closed");
    }

    static void say(String line) {
        System.out.println(line);
        System.out.flush();
    }

    static class Said implements ConsumerRebalanceListener {
        public void onPartitionsAssigned(Collection<TopicPartition> partitions) {
            tell("assigned", partitions);
        }

        public void onPartitionsRevoked(Collection<TopicPartition> partitions) {
            tell("revoked", partitions);
        }

        static void tell(String what, Collection<TopicPartition> partitions) {
            StringBuilder line = new StringBuilder(what);
            for (TopicPartition partition : partitions) {
                line.append(' ').append(partition.partition());
            }
            say(line.toString());
        }
    }
}
