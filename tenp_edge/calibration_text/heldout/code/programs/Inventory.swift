import Foundation

/// Stock of the repair café: parts come in lots with a price each, the oldest
/// lot is used up first.
struct Inventory {
    struct Lot {
        var quantity: Int
        let unitPrice: Decimal
    }

    enum Failure: Error, Equatable {
        case unknownPart(String)
        case notEnough(part: String, wanted: Int, available: Int)
    }

    private var lots: [String: [Lot]] = [:]

    mutating func receive(_ part: String, _ quantity: Int, at price: Decimal) {
        precondition(quantity > 0, "a delivery of nothing?")
        lots[part, default: []].append(Lot(quantity: quantity, unitPrice: price))
    }

    func available(_ part: String) -> Int {
        lots[part, default: []].reduce(0) { $0 + $1.quantity }
    }

    /// Removes the parts and returns what they cost us. All or nothing.
    mutating func take(_ part: String, _ wanted: Int) throws -> Decimal {
        guard var queue = lots[part] else { throw Failure.unknownPart(part) }
        let have = available(part)
        guard have >= wanted else {
            throw Failure.notEnough(part: part, wanted: wanted, available: have)
        }
        var cost = Decimal(0)
        var open = wanted
        while open > 0 {
            let used = min(open, queue[0].quantity)
            cost += Decimal(used) * queue[0].unitPrice
            queue[0].quantity -= used
            open -= used
            if queue[0].quantity == 0 { queue.removeFirst() }
        }
        lots[part] = queue
        return cost
    }
}

var stock = Inventory()
stock.receive("fuse 2 A", 10, at: 0.15)
stock.receive("fuse 2 A", 20, at: 0.20)
let cost = try stock.take("fuse 2 A", 14)      // 10 x 0.15 + 4 x 0.20
print("cost:", cost, "left:", stock.available("fuse 2 A"))
do {
    _ = try stock.take("fuse 2 A", 17)
} catch let error as Inventory.Failure {
    assert(error == .notEnough(part: "fuse 2 A", wanted: 17, available: 16))
    print("refused:", error)
}
