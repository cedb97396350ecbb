{-# LANGUAGE LambdaCase #-}
-- | Regular expressions matched by taking derivatives: to match @c:cs@ against
-- @r@, match @cs@ against whatever may follow a @c@ in @r@. No automaton, no
-- backtracking, a page of code.
module Main (main) where

import Data.List (foldl')

data Regex
  = Never                -- ^ matches nothing
  | Empty                -- ^ matches only the empty string
  | Sym Char
  | Any
  | Regex :|: Regex
  | Regex :>: Regex
  | Star Regex
  | Not Regex
  deriving (Eq, Show)

infixr 5 :|:
infixr 6 :>:

-- Smart constructors keep the derivatives from growing without bound.
(<||>), (<.>) :: Regex -> Regex -> Regex
Never <||> r = r
r <||> Never = r
r <||> s | r == s = r
         | otherwise = r :|: s

Never <.> _ = Never
_ <.> Never = Never
Empty <.> r = r
r <.> Empty = r
r <.> s = r :>: s

nullable :: Regex -> Bool
nullable = \case
  Never -> False
  Empty -> True
  Sym _ -> False
  Any -> False
  r :|: s -> nullable r || nullable s
  r :>: s -> nullable r && nullable s
  Star _ -> True
  Not r -> not (nullable r)

deriv :: Regex -> Char -> Regex
deriv Never _ = Never
deriv Empty _ = Never
deriv (Sym a) c = if a == c then Empty else Never
deriv Any _ = Empty
deriv (r :|: s) c = deriv r c <||> deriv s c
deriv (r :>: s) c
  | nullable r = (deriv r c <.> s) <||> deriv s c
  | otherwise = deriv r c <.> s
deriv (Star r) c = deriv r c <.> Star r
deriv (Not r) c = Not (deriv r c)

matches :: Regex -> String -> Bool
matches r = nullable . foldl' deriv r

-- | A literal string.
lit :: String -> Regex
lit = foldr ((<.>) . Sym) Empty

-- | Block comments: open, anything that does not contain the closer, close.
-- Complement makes this one line; with plain operators it is a puzzle.
comment :: Regex
comment = lit "/*" <.> Not (Star Any <.> lit "*/" <.> Star Any) <.> lit "*/"

main :: IO ()
main = mapM_ check
  [ (comment, "/* fine */", True)
  , (comment, "/* one */ two */", False)
  , (comment, "/***/", True)
  , (comment, "/*/", False)
  , (Star (lit "ab" :|: lit "c"), "abcab", True)
  , (Star (lit "ab" :|: lit "c"), "aba", False)
  ]
  where
    check (r, s, want)
      | matches r s == want = putStrLn ("ok    " ++ s)
      | otherwise = error ("wrong answer for " ++ show s)
