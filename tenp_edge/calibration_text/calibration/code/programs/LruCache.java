import java.util.HashMap;
import java.util.Map;
import java.util.Optional;
import java.util.function.BiConsumer;

/**
 * A least-recently-used cache whose limit is a total weight, not an entry
 * count: thumbnails of 4 kB and posters of 3 MB live side by side.
 *
 * <p>Not thread-safe; the image loader confines it to its own thread.
 */
public final class LruCache<K, V> {

    private static final class Node<K, V> {
        final K key;
        V value;
        long weight;
        Node<K, V> prev, next;

        Node(K key) {
            this.key = key;
        }
    }

    private final long maxWeight;
    private final BiConsumer<? super K, ? super V> onEvict;
    private final Map<K, Node<K, V>> index = new HashMap<>();
    /** Sentinel: head.next is the newest entry, head.prev the oldest. */
    private final Node<K, V> head = new Node<>(null);
    private long weight;

    public LruCache(long maxWeight, BiConsumer<? super K, ? super V> onEvict) {
        if (maxWeight <= 0) {
            throw new IllegalArgumentException("maxWeight must be positive: " + maxWeight);
        }
        this.maxWeight = maxWeight;
        this.onEvict = onEvict;
        head.prev = head.next = head;
    }

    public Optional<V> get(K key) {
        Node<K, V> n = index.get(key);
        if (n == null) {
            return Optional.empty();
        }
        unlink(n);
        linkFirst(n);
        return Optional.of(n.value);
    }

    /**
     * Stores a value and evicts old ones until everything fits.
     *
     * @return false if the value alone outweighs the cache; nothing changes then
     */
    public boolean put(K key, V value, long itemWeight) {
        if (itemWeight < 0) {
            throw new IllegalArgumentException("negative weight");
        }
        if (itemWeight > maxWeight) {
            return false;
        }
        Node<K, V> n = index.get(key);
        if (n == null) {
            n = new Node<>(key);
            index.put(key, n);
        } else {
            unlink(n);
            weight -= n.weight;
        }
        n.value = value;
        n.weight = itemWeight;
        weight += itemWeight;
        linkFirst(n);
        while (weight > maxWeight) {
            Node<K, V> oldest = head.prev;
            unlink(oldest);
            index.remove(oldest.key);
            weight -= oldest.weight;
            onEvict.accept(oldest.key, oldest.value);
        }
        return true;
    }

    public long weight() {
        return weight;
    }

    private void linkFirst(Node<K, V> n) {
        n.next = head.next;
        n.prev = head;
        head.next.prev = n;
        head.next = n;
    }

    private static void unlink(Node<?, ?> n) {
        unlinkTyped(n);
    }

    private static <A, B> void unlinkTyped(Node<A, B> n) {
        n.prev.next = n.next;
        n.next.prev = n.prev;
    }

    public static void main(String[] args) {
        StringBuilder evicted = new StringBuilder();
        LruCache<String, String> c = new LruCache<>(10, (k, v) -> evicted.append(k));
        c.put("a", "anna", 4);
        c.put("b", "bert", 4);
        c.get("a");              // b is now the oldest
        c.put("c", "carl", 3);   // 11 > 10: b has to go
        check(evicted.toString().equals("b"), "evicted " + evicted);
        check(c.get("b").isEmpty() && c.get("a").isPresent(), "a survives");
        c.put("a", "ANNA", 1);   // replacing adjusts the weight
        check(c.weight() == 4, "weight " + c.weight());
        check(!c.put("huge", "x", 11), "does not fit at all");
        System.out.println("ok");
    }

    private static void check(boolean condition, String message) {
        if (!condition) {
            throw new AssertionError(message);
        }
    }
}
