// Package flight collapses concurrent requests for the same key into one call
// and caches the answer for a while.
package flight

import (
	"context"
	"sync"
	"time"
)

type entry[V any] struct {
	ready   chan struct{} // closed when value and err are set
	value   V
	err     error
	expires time.Time
}

// Group is safe for concurrent use. The zero value is not usable; call New.
type Group[K comparable, V any] struct {
	mu    sync.Mutex
	byKey map[K]*entry[V]
	load  func(context.Context, K) (V, error)
	ttl   time.Duration
	now   func() time.Time
}

// New returns a group that fetches missing keys with load and keeps good
// answers for ttl. Errors are handed to everyone who was waiting and then
// forgotten, so the next caller tries again.
func New[K comparable, V any](ttl time.Duration, load func(context.Context, K) (V, error)) *Group[K, V] {
	return &Group[K, V]{
		byKey: make(map[K]*entry[V]),
		load:  load,
		ttl:   ttl,
		now:   time.Now,
	}
}

// Get returns the value for key. If ctx ends first it returns ctx.Err(), but
// the load goes on for the benefit of the other waiters.
func (g *Group[K, V]) Get(ctx context.Context, key K) (V, error) {
	e := g.lookup(ctx, key)
	select {
	case <-e.ready:
		return e.value, e.err
	case <-ctx.Done():
		var zero V
		return zero, ctx.Err()
	}
}

func (g *Group[K, V]) lookup(ctx context.Context, key K) *entry[V] {
	g.mu.Lock()
	defer g.mu.Unlock()

	if e, ok := g.byKey[key]; ok {
		select {
		case <-e.ready:
			if g.now().Before(e.expires) {
				return e
			}
		default:
			return e // still loading: join it
		}
	}

	e := &entry[V]{ready: make(chan struct{})}
	g.byKey[key] = e
	// The first caller may hang up; its cancellation must not fail the rest.
	go g.fill(context.WithoutCancel(ctx), key, e)
	return e
}

func (g *Group[K, V]) fill(ctx context.Context, key K, e *entry[V]) {
	e.value, e.err = g.load(ctx, key)
	e.expires = g.now().Add(g.ttl)

	g.mu.Lock()
	if e.err != nil && g.byKey[key] == e {
		delete(g.byKey, key)
	}
	g.mu.Unlock()
	close(e.ready)
}
