using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;

namespace Allotment.Books;

/// <summary>One line of a booking. Debits are positive, credits negative.</summary>
public sealed record Posting(string Account, decimal Amount);

public sealed record Booking(DateOnly Date, string Text, IReadOnlyList<Posting> Postings)
{
    public bool Balanced => Postings.Sum(p => p.Amount) == 0m;
}

public sealed class UnbalancedException : Exception
{
    public UnbalancedException(Booking b)
        : base($"'{b.Text}' on {b.Date:yyyy-MM-dd} is off by {b.Postings.Sum(p => p.Amount).ToString("0.00", CultureInfo.InvariantCulture)}")
    {
    }
}

/// <summary>
/// Double-entry ledger of the allotment society. Bookings are never changed; a
/// mistake is corrected by <see cref="Reverse"/>, which leaves both visible.
/// </summary>
public sealed class Ledger
{
    private readonly List<Booking> _bookings = new();

    public void Post(DateOnly date, string text, params (string Account, decimal Amount)[] lines)
    {
        var booking = new Booking(date, text, lines.Select(l => new Posting(l.Account, l.Amount)).ToList());
        if (lines.Length < 2)
            throw new ArgumentException("a booking touches at least two accounts", nameof(lines));
        if (!booking.Balanced)
            throw new UnbalancedException(booking);
        _bookings.Add(booking);
    }

    public void Reverse(int index, DateOnly date)
    {
        var old = _bookings[index];
        _bookings.Add(new Booking(date, $"Reversal: {old.Text}",
            old.Postings.Select(p => p with { Amount = -p.Amount }).ToList()));
    }

    public decimal Balance(string account, DateOnly? upTo = null) =>
        _bookings
            .Where(b => upTo is null || b.Date <= upTo)
            .SelectMany(b => b.Postings)
            .Where(p => p.Account == account || p.Account.StartsWith(account + ":", StringComparison.Ordinal))
            .Sum(p => p.Amount);

    public IEnumerable<(string Account, decimal Balance)> TrialBalance() =>
        from b in _bookings
        from p in b.Postings
        group p.Amount by p.Account into g
        let sum = g.Sum()
        where sum != 0m
        orderby g.Key
        select (g.Key, sum);
}

public static class Program
{
    public static void Main()
    {
        var books = new Ledger();
        var spring = new DateOnly(2024, 4, 2);
        books.Post(spring, "Membership plot 14", ("Assets:Bank", 85m), ("Income:Fees", -85m));
        books.Post(spring.AddDays(9), "New pump, paid half in cash",
            ("Expenses:Water", 410.50m), ("Assets:Cash", -200m), ("Assets:Bank", -210.50m));
        books.Post(spring.AddDays(10), "Seed potatoes", ("Expenses:Seed", 32.20m), ("Assets:Cash", -32.20m));
        books.Reverse(2, spring.AddDays(12));   // they were for a private plot

        foreach (var (account, balance) in books.TrialBalance())
            Console.WriteLine($"{account,-18}{balance.ToString("N2", CultureInfo.InvariantCulture),12}");
        Console.WriteLine($"All assets: {books.Balance("Assets")}");   // 85 - 200 - 210.50 = -325.50

        try
        {
            books.Post(spring, "Typo", ("Assets:Bank", 10m), ("Income:Fees", -1m));
        }
        catch (UnbalancedException e)
        {
            Console.WriteLine(e.Message);
        }
    }
}
