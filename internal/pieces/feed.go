package pieces

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/damselfly-io/damselfly/internal/task"
)

// errFeed is returned for a feed that breaks its format.
var errFeed = errors.New("malformed haves feed")

// appendRuns appends the pieces of set that are not in sent to b, in the
// format of the feed, and adds them to sent. Both sets have the same room.
func appendRuns(b []byte, set, sent task.Set) []byte {
	first, count := 0, 0
	flush := func() {
		if count > 0 {
			b = binary.AppendUvarint(b, uint64(first)) // #nosec G115 -- piece numbers
			b = binary.AppendUvarint(b, uint64(count)) // #nosec G115 -- as above
		}
	}
	for w := range set {
		fresh := task.Set{set[w] &^ sent[w]}
		for i := range fresh.All() {
			if p := w*64 + i; count > 0 && p == first+count {
				count++
			} else {
				flush()
				first, count = p, 1
			}
		}
		sent[w] |= set[w]
	}
	flush()
	return b
}

// keepAlive is a run of no pieces.
var keepAlive = []byte{0, 0}

// readFeed calls have for every run of pieces in r, all of them within
// [0, pieces), until the feed ends or breaks.
func readFeed(r io.Reader, pieces int, have func(first, count int)) error {
	br := bufio.NewReaderSize(r, 4096)
	for {
		first, err := binary.ReadUvarint(br)
		if err != nil {
			return err
		}
		count, err := binary.ReadUvarint(br)
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		if n := uint64(pieces); first > n || count > n-first { // #nosec G115 -- a count
			return fmt.Errorf("%w: pieces [%d, +%d) of %d", errFeed, first, count, pieces)
		}
		if count > 0 {
			have(int(first), int(count)) // #nosec G115 -- both are at most pieces
		}
	}
}
