// @grpc/grpc-js with an xds:/// target: asks 400 times and prints how often each server answered, as JSON.
const grpc = require("@grpc/grpc-js");
const xds = require("@grpc/grpc-js-xds");

xds.register();
const credentials = new xds.XdsChannelCredentials(grpc.credentials.createInsecure());
const client = new grpc.Client(process.argv[2], credentials);
const same = (bytes) => bytes;

function ask(deadline) {
  return new Promise((resolve, reject) => {
    const options = { deadline: Date.now() + deadline };
    const done = (error, answer) => (error ? reject(error) : resolve(answer.toString()));
    client.makeUnaryRequest("/test.Shop/Ask", same, same, Buffer.alloc(0), new grpc.Metadata({ waitForReady: true }), options, done);
  });
}

async function main() {
  const answers = {};
  await ask(30000);
  for (let i = 0; i < 400; i++) {
    const answer = await ask(10000);
    answers[answer] = (answers[answer] || 0) + 1;
  }
  client.close();
  console.log(JSON.stringify(answers));
  process.exit(0);
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
