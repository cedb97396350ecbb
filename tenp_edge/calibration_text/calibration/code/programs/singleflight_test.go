package flight

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestConcurrentCallersShareOneLoad(t *testing.T) {
	var calls atomic.Int32
	gate := make(chan struct{})
	g := New(time.Minute, func(_ context.Context, k string) (int, error) {
		calls.Add(1)
		<-gate
		return len(k), nil
	})

	var wg sync.WaitGroup
	for range 40 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if v, err := g.Get(context.Background(), "heron"); v != 5 || err != nil {
				t.Errorf("got %d, %v", v, err)
			}
		}()
	}
	close(gate)
	wg.Wait()
	if n := calls.Load(); n != 1 {
		t.Fatalf("loaded %d times, want 1", n)
	}
}

func TestErrorsAreNotCached(t *testing.T) {
	boom := errors.New("upstream down")
	attempt := 0
	g := New(time.Minute, func(context.Context, int) (string, error) {
		attempt++
		if attempt == 1 {
			return "", boom
		}
		return "fine", nil
	})
	if _, err := g.Get(context.Background(), 1); !errors.Is(err, boom) {
		t.Fatalf("first call: %v", err)
	}
	if v, err := g.Get(context.Background(), 1); v != "fine" || err != nil {
		t.Fatalf("second call: %q, %v", v, err)
	}
}

func TestWaiterMayGiveUp(t *testing.T) {
	gate := make(chan struct{})
	g := New(time.Minute, func(context.Context, int) (int, error) { <-gate; return 7, nil })

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := g.Get(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	close(gate)
	if v, err := g.Get(context.Background(), 0); v != 7 || err != nil {
		t.Fatalf("the abandoned load should still serve others: %d, %v", v, err)
	}
}
