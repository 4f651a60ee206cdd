package snapshotter

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/snapshotter/node"
)

// publicPEM returns the public half of a new key, and its ID.
func publicPEM(t *testing.T) (pem []byte, id string) {
	t.Helper()
	key, err := trust.Generate()
	if err != nil {
		t.Fatal(err)
	}
	pem, err = key.Public().MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	return pem, key.ID()
}

// keyIDs returns the keys that a policy trusts now.
func keyIDs(t *testing.T, p *policy) map[string]bool {
	t.Helper()
	now, err := p.get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for _, k := range now.Keys() {
		ids[k.ID()] = true
	}
	return ids
}

func TestPolicyFollowsFileAndSupernode(t *testing.T) {
	ownPEM, own := publicPEM(t)
	firstPEM, first := publicPEM(t)
	secondPEM, second := publicPEM(t)
	file := filepath.Join(t.TempDir(), "trust.yaml")
	write := func(data string) {
		if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(file), "own.pem"), ownPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	write("keys: [own.pem]\n")
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		info, infoErr := node.Info{TrustKeys: [][]byte{[]byte("no key"), firstPEM}}, error(nil)
		p := &policy{file: file, log: slog.New(slog.DiscardHandler), info: func(context.Context) (node.Info, error) {
			asked++
			return info, infoErr
		}}
		if ids := keyIDs(t, p); len(ids) != 2 || !ids[own] || !ids[first] {
			t.Errorf("keys %v", ids)
		}
		info.TrustKeys = [][]byte{secondPEM}
		write("keys: []\n")
		if ids := keyIDs(t, p); len(ids) != 1 || !ids[first] || asked != 1 {
			t.Errorf("keys %v after %d questions", ids, asked)
		}
		time.Sleep(keysCount)
		if ids := keyIDs(t, p); len(ids) != 1 || !ids[second] || asked != 2 {
			t.Errorf("keys %v after %d questions", ids, asked)
		}
		// While the daemon cannot be asked the last ones count, and it is asked
		// seldom.
		infoErr = errors.New("down")
		time.Sleep(keysCount)
		for range 3 {
			if ids := keyIDs(t, p); len(ids) != 1 || !ids[second] || asked != 3 {
				t.Errorf("keys %v after %d questions", ids, asked)
			}
		}
		time.Sleep(keysRetry)
		infoErr, info.TrustKeys = nil, nil
		if ids := keyIDs(t, p); len(ids) != 0 {
			t.Errorf("keys %v", ids)
		}
	})
	write("keys: {}\n")
	p := &policy{file: file, log: slog.New(slog.DiscardHandler)}
	if _, err := p.get(t.Context()); err == nil {
		t.Error("a policy that is wrong is taken")
	}
}

func TestPolicyDoesNotWaitForTheDaemon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &policy{log: slog.New(slog.DiscardHandler), info: func(ctx context.Context) (node.Info, error) {
			<-ctx.Done()
			return node.Info{}, ctx.Err()
		}}
		begin := time.Now()
		if ids := keyIDs(t, p); len(ids) != 0 || time.Since(begin) != keysTimeout {
			t.Errorf("keys %v after %s", ids, time.Since(begin))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		time.Sleep(keysRetry)
		if _, err := p.get(ctx); err != nil {
			t.Error(err)
		}
		if time.Now().Before(p.refresh) {
			t.Error("a pull that was given up keeps others from asking")
		}
	})
}
