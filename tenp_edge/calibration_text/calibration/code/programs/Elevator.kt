package lift

import java.util.TreeSet

enum class Direction { UP, DOWN, IDLE }

/**
 * The classic collective control: finish everything in the current direction,
 * then turn round. Hall calls remember which way the passenger wants to go.
 */
class Elevator(private val floors: IntRange, start: Int = floors.first) {
    var floor = start
        private set
    var direction = Direction.IDLE
        private set

    private val inside = TreeSet<Int>()
    private val hallUp = TreeSet<Int>()
    private val hallDown = TreeSet<Int>()

    fun press(target: Int) {
        require(target in floors) { "no floor $target" }
        inside += target
    }

    fun call(from: Int, wants: Direction) {
        require(from in floors) { "no floor $from" }
        when (wants) {
            Direction.UP -> hallUp += from
            Direction.DOWN -> hallDown += from
            Direction.IDLE -> error("a caller wants to go somewhere")
        }
    }

    /** One tick: open the doors here (true) or move one floor (false). */
    fun step(): Boolean {
        if (direction == Direction.IDLE) direction = pickDirection()
        if (serveHere()) return true
        when {
            direction == Direction.UP && anyAbove() -> floor++
            direction == Direction.DOWN && anyBelow() -> floor--
            else -> {
                direction = pickDirection()
                return serveHere()
            }
        }
        return false
    }

    private fun all() = inside + hallUp + hallDown
    private fun anyAbove() = all().any { it > floor }
    private fun anyBelow() = all().any { it < floor }

    private fun pickDirection() = when {
        all().isEmpty() -> Direction.IDLE
        direction != Direction.DOWN && anyAbove() -> Direction.UP
        anyBelow() -> Direction.DOWN
        anyAbove() -> Direction.UP
        floor in hallDown && floor !in hallUp -> Direction.DOWN
        else -> Direction.UP          // somebody is waiting right here
    }

    private fun serveHere(): Boolean {
        var served = inside.remove(floor)
        val goingUp = direction == Direction.UP
        // At the turning point, take the people who want to go the other way.
        val turning = if (goingUp) !anyAbove() else !anyBelow()
        if (goingUp || turning) served = hallUp.remove(floor) || served
        if (!goingUp || turning) served = hallDown.remove(floor) || served
        return served
    }
}

fun main() {
    val lift = Elevator(0..9)
    lift.call(3, Direction.DOWN)
    lift.call(2, Direction.UP)
    lift.press(5)
    val stops = mutableListOf<Int>()
    repeat(20) { if (lift.step()) stops += lift.floor }
    // 3 is passed on the way up because that caller wants to go down
    check(stops == listOf(2, 5, 3)) { "stopped at $stops" }
    check(lift.direction == Direction.IDLE)
    println(stops)
}
