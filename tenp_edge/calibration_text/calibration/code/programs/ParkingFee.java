package garage;

import java.time.Duration;
import java.time.LocalDateTime;
import java.time.LocalTime;

/** Fee rules of the Station Street car park, valid from 1 March. */
public class ParkingFee {

    sealed interface Ticket permits ShortStay, DayPass, LostTicket {}

    record ShortStay(LocalDateTime in, LocalDateTime out) implements Ticket {
        ShortStay {
            if (out.isBefore(in)) {
                throw new IllegalArgumentException("left before arriving");
            }
        }
    }

    record DayPass(int days) implements Ticket {}

    record LostTicket(String plate) implements Ticket {}

    private static final Duration GRACE = Duration.ofMinutes(10);
    private static final int PER_HALF_HOUR = 120;   // cents, 07:00 to 20:00
    private static final int NIGHT_FLAT = 400;      // each night touched
    private static final int DAY_CAP = 1800;        // for the day hours of one date

    static int cents(Ticket ticket) {
        return switch (ticket) {
            case DayPass p -> p.days() * 1500;
            case LostTicket l -> 4000;
            case ShortStay s -> shortStay(s.in(), s.out());
        };
    }

    private static int shortStay(LocalDateTime in, LocalDateTime out) {
        if (Duration.between(in, out).compareTo(GRACE) <= 0) {
            return 0;
        }
        int total = 0;
        for (var day = in.toLocalDate().minusDays(1); !day.isAfter(out.toLocalDate()); day = day.plusDays(1)) {
            var open = day.atTime(LocalTime.of(7, 0));
            var close = day.atTime(LocalTime.of(20, 0));
            long dayMinutes = overlapMinutes(in, out, open, close);
            long halves = (dayMinutes + 29) / 30;
            total += (int) Math.min(halves * PER_HALF_HOUR, DAY_CAP);
            if (overlapMinutes(in, out, close, open.plusDays(1)) > 0) {
                total += NIGHT_FLAT;
            }
        }
        return total;
    }

    private static long overlapMinutes(LocalDateTime a, LocalDateTime b, LocalDateTime c, LocalDateTime d) {
        var start = a.isAfter(c) ? a : c;
        var end = b.isBefore(d) ? b : d;
        return Math.max(0, Duration.between(start, end).toMinutes());
    }

    public static void main(String[] args) {
        var noon = LocalDateTime.of(2024, 3, 5, 12, 0);
        System.out.println(cents(new ShortStay(noon, noon.plusMinutes(10))));   // 0
        System.out.println(cents(new ShortStay(noon, noon.plusMinutes(61))));   // 3 halves: 360
        System.out.println(cents(new ShortStay(noon, noon.plusHours(9))));      // capped day + night: 2200
        System.out.println(cents(new DayPass(3)));                              // 4500
    }
}
