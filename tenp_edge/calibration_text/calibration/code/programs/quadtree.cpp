#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

struct Point { double x, y; };

struct Box {
    double x0, y0, x1, y1;

    bool contains(Point p) const { return p.x >= x0 && p.x < x1 && p.y >= y0 && p.y < y1; }

    // Squared distance from p to the nearest point of the box; 0 inside.
    double distance2(Point p) const {
        const double dx = std::max({x0 - p.x, 0.0, p.x - x1});
        const double dy = std::max({y0 - p.y, 0.0, p.y - y1});
        return dx * dx + dy * dy;
    }
};

/// Point quadtree with bucket leaves, for nearest-neighbour lookups on the map
/// screen. Coincident points are fine: a leaf at maximum depth just grows.
class QuadTree {
public:
    explicit QuadTree(Box area, int depth = 0) : area_(area), depth_(depth) {}

    bool insert(Point p) {
        if (!area_.contains(p)) return false;
        if (!kids_[0]) {
            bucket_.push_back(p);
            if (bucket_.size() > kBucket && depth_ < kMaxDepth) split();
            return true;
        }
        return child(p).insert(p);
    }

    const Point* nearest(Point q) const {
        const Point* best = nullptr;
        double d2 = std::numeric_limits<double>::infinity();
        search(q, best, d2);
        return best;
    }

private:
    static constexpr std::size_t kBucket = 8;
    static constexpr int kMaxDepth = 20;

    QuadTree& child(Point p) {
        const double mx = (area_.x0 + area_.x1) / 2, my = (area_.y0 + area_.y1) / 2;
        return *kids_[(p.x >= mx) + 2 * (p.y >= my)];
    }

    void split() {
        const auto [x0, y0, x1, y1] = area_;
        const double mx = (x0 + x1) / 2, my = (y0 + y1) / 2;
        kids_[0] = std::make_unique<QuadTree>(Box{x0, y0, mx, my}, depth_ + 1);
        kids_[1] = std::make_unique<QuadTree>(Box{mx, y0, x1, my}, depth_ + 1);
        kids_[2] = std::make_unique<QuadTree>(Box{x0, my, mx, y1}, depth_ + 1);
        kids_[3] = std::make_unique<QuadTree>(Box{mx, my, x1, y1}, depth_ + 1);
        for (Point p : bucket_) child(p).insert(p);
        bucket_.clear();
        bucket_.shrink_to_fit();
    }

    void search(Point q, const Point*& best, double& d2) const {
        if (area_.distance2(q) >= d2) return;   // nothing closer in here
        for (const Point& p : bucket_) {
            const double d = (p.x - q.x) * (p.x - q.x) + (p.y - q.y) * (p.y - q.y);
            if (d < d2) { d2 = d; best = &p; }
        }
        if (!kids_[0]) return;
        // Closest quadrant first: it usually shrinks d2 enough to skip the rest.
        const QuadTree* order[4];
        std::transform(std::begin(kids_), std::end(kids_), order, [](auto& k) { return k.get(); });
        std::sort(order, order + 4, [&](auto* a, auto* b) {
            return a->area_.distance2(q) < b->area_.distance2(q);
        });
        for (auto* k : order) k->search(q, best, d2);
    }

    Box area_;
    int depth_;
    std::vector<Point> bucket_;
    std::unique_ptr<QuadTree> kids_[4];
};

int main() {
    std::mt19937 rng(7);
    std::uniform_real_distribution<double> u(0, 1000);
    QuadTree tree({0, 0, 1000, 1000});
    std::vector<Point> all;
    for (int i = 0; i < 5000; ++i) {
        all.push_back({u(rng), u(rng)});
        assert(tree.insert(all.back()));
    }
    assert(!tree.insert({-1, 5}));
    for (int i = 0; i < 200; ++i) {
        const Point q{u(rng), u(rng)};
        auto d = [q](Point p) { return std::hypot(p.x - q.x, p.y - q.y); };
        const double brute = d(*std::min_element(all.begin(), all.end(),
            [&](Point a, Point b) { return d(a) < d(b); }));
        assert(std::abs(d(*tree.nearest(q)) - brute) < 1e-12);
    }
}
