package images

import (
	"context"
	"errors"
	"fmt"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/content"
	"github.com/damselfly-io/damselfly/chunkfmt/merkle"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/imageindex"
)

// verifyFiles reads single files and proves that they belong to the tree.
func verifyFiles(ctx context.Context, v *Verification, s *subject, tree *chunkfmt.Tree, names []string) error {
	hashed := merkle.Hash(tree)
	reader := content.NewReader(tree, imageindex.Stored{Source: s.source}, content.Options{})
	for _, name := range names {
		proof, err := hashed.Prove(name)
		if err != nil {
			return exit.With(exit.NotFound, err)
		}
		inode, err := tree.Lookup(name)
		if err != nil {
			return exit.With(exit.NotFound, err)
		}
		switch tree.Kind(inode) {
		case chunkfmt.File:
		case chunkfmt.Symlink:
			return fmt.Errorf("%s is a symbolic link to %s: name the file itself", name, tree.Target(inode))
		default:
			return fmt.Errorf("%s is no regular file", name)
		}
		encoded, err := proof.MarshalBinary()
		if err != nil {
			return err
		}
		chunks, err := verifyContent(ctx, reader, tree, inode)
		if err != nil && !errors.Is(err, content.ErrCorrupt) {
			return err
		}
		if err != nil {
			err = fmt.Errorf("/%s: %w", proof.Path, err)
		}
		v.add("/"+proof.Path, fmt.Sprintf("%s in %s, proof of %s", output.Bytes(tree.Inodes[inode].Size), output.Count(chunks, "chunk"), output.Bytes(int64(len(encoded)))),
			err, proof.Verify(s.Artifact.Root))
		v.Checks[len(v.Checks)-1].Proof = encoded
	}
	return nil
}

// verifyContent compares each chunk of a file with its digest and returns how
// many there are.
func verifyContent(ctx context.Context, reader *content.Reader, tree *chunkfmt.Tree, inode uint32) (int, error) {
	chunks := 0
	for offset, c := range tree.Content(inode) {
		chunks++
		if c.Blob == chunkfmt.Hole {
			continue // what is proved is its length
		}
		plain := make([]byte, c.Length)
		if _, err := reader.ReadAt(ctx, inode, plain, offset); err != nil {
			return chunks, err
		}
		if got := chunkfmt.Sum(plain); got != c.Digest {
			return chunks, fmt.Errorf("%w: the %d bytes at %d have digest %s, want %s", content.ErrCorrupt, c.Length, offset, got, c.Digest)
		}
	}
	return chunks, nil
}
