// Explains one prediction and prints the strongest neurons: node build/attribute.js [ADDRESS] [PROMPT]

import { credentials, loadPackageDefinition, Metadata } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { fileURLToPath } from "node:url";
import type { ProtoGrpcType } from "./generated/neuron_attribution.js";
import type { AttributeRequest } from "./generated/neuron_attribution/v1/AttributeRequest.js";
import type { AttributeResponse__Output } from "./generated/neuron_attribution/v1/AttributeResponse.js";
import type { Neuron__Output } from "./generated/neuron_attribution/v1/Neuron.js";
import type { NeuronAttributionServiceClient } from "./generated/neuron_attribution/v1/NeuronAttributionService.js";

const PROTOS = fileURLToPath(new URL("../../../../protos", import.meta.url));
// The same options that the types were generated with.
const OPTIONS = { longs: Number, enums: String, defaults: true, oneofs: true, keepCase: true, includeDirs: [PROTOS] };
// An answer may be larger than the 4 MiB that gRPC takes by itself; 64 MiB is the server's own limit.
const CHANNEL = { "grpc.max_receive_message_length": 64 * 1024 * 1024 };

function connect(address: string): NeuronAttributionServiceClient {
  const definition = loadSync("neuron_attribution/v1/neuron_attribution.proto", OPTIONS);
  const { neuron_attribution } = loadPackageDefinition(definition) as unknown as ProtoGrpcType;
  return new neuron_attribution.v1.NeuronAttributionService(address, credentials.createInsecure(), CHANNEL);
}

function attribute(client: NeuronAttributionServiceClient, request: AttributeRequest) {
  const deadline = Date.now() + 60_000;
  return new Promise<AttributeResponse__Output>((resolve, reject) => {
    client.Attribute(request, new Metadata(), { deadline }, (error, response) => {
      if (error || !response) reject(error);
      else resolve(response);
    });
  });
}

function name({ ffn, attention }: Neuron__Output): string {
  if (attention) return `${attention.layer}.${attention.head}.${attention.index}`;
  return ffn?.expert === undefined ? `${ffn?.layer}.${ffn?.index}` : `${ffn.layer}.e${ffn.expert}.${ffn.index}`;
}

async function main(address = "localhost:50051", prompt = "The capital of France is"): Promise<void> {
  const client = connect(address);
  try {
    const { explanations } = await attribute(client, { prompt: { text: prompt }, top_k: 5 });
    for (const { target, ffn_value_neurons } of explanations) {
      console.log(JSON.stringify(target?.token?.text), target?.probability.toFixed(4));
      for (const { neuron, score, promoted_side, projection } of ffn_value_neurons?.neurons ?? []) {
        const promoted = promoted_side === "PROMOTED_SIDE_BOTTOM" ? projection?.bottom : projection?.top;
        const tokens = promoted?.slice(0, 3).map(({ token }) => JSON.stringify(token?.text));
        console.log(neuron && name(neuron), score.toFixed(4), tokens?.join(" "));
      }
    }
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    process.exitCode = 1;
  } finally {
    client.close();
  }
}

await main(...process.argv.slice(2));
