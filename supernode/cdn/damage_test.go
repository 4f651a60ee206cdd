package cdn

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/damselfly-io/damselfly/internal/piecestore"
)

// TestDamagedPieceIsFetchedAgain overwrites a piece on disk: what reads it next
// finds out, and the cache gets it from the origin again.
func TestDamagedPieceIsFetchedAgain(t *testing.T) {
	s := newSite(t, size)
	n := newNode(t, nil)
	o := n.ensure(t, s.request())
	waitComplete(t, o, s.content)

	const piece = 3
	off, _ := o.Table().Piece(piece)
	names, err := filepath.Glob(filepath.Join(n.dir, "cache", "tasks", "*", "*", "*", "data"))
	if err != nil || len(names) != 1 {
		t.Fatalf("data files %v, %v", names, err)
	}
	f, err := os.OpenFile(names[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("not what the origin sent"), off); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}

	var damaged *piecestore.DamagedError
	if err := o.t.Check(t.Context(), piece); !errors.As(err, &damaged) {
		t.Fatalf("checking the overwritten piece: %v", err)
	}
	n.Damaged(o.ID(), damaged.Piece)
	waitComplete(t, o, s.content)
}
